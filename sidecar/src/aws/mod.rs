//! The control plane on the AWS SDK: starts, resumes and terminates sessions, signs the opening of data channels.
//!
//! With static keys the clients are built directly: no profile file is read and no metadata service is called, so that
//! a missing key can never fall back to the identity of the host. Credentials are resolved here, before each call, and
//! passed to the SDK with the call: replaced keys hold from the next call on, and a denied `sts:AssumeRole` is reported
//! as such.

mod access_denied;
mod credentials;
mod endpoint;
mod http;
mod quote;
mod sdk_error;
mod service_error;
mod settings;
mod signing;

use ::http::Uri;
use aws_sdk_ssm::{
    config::{
        BehaviorVersion, IdentityCache, Region, StalledStreamProtectionConfig, retry::RetryConfig,
    },
    error::SdkError,
    operation::resume_session::ResumeSessionOutput,
};
use futures_util::future::BoxFuture;
use tracing::debug;

use crate::{
    net::{proxy::Proxy, tls::RootCertificates},
    session::{
        ApiError, ApiErrorKind, IamAction, Keys, Resumed, SSH_DOCUMENT, SessionApi, SignedHeaders,
        Started, Token,
    },
};

pub(crate) use credentials::{AssumeRole, Identity};
pub(crate) use settings::{SsmSettings, to_keys};

use credentials::CredentialSource;
use endpoint::{Call, Endpoint};
use sdk_error::from_sdk;

/// [`SessionApi`] on the AWS SDK.
#[derive(Debug)]
pub(crate) struct SsmClient {
    ssm: aws_sdk_ssm::Client,
    credentials: CredentialSource,
    endpoint: Endpoint,
    instance_id: String,
    ssh_port: u16,
    reason: String,
}

impl SsmClient {
    /// Builds the clients; opens no connection and no file.
    pub(crate) fn new(settings: SsmSettings, roots: &RootCertificates, proxy: &Proxy) -> Self {
        let SsmSettings {
            identity,
            assume_role,
            region,
            endpoint_url,
            instance_id,
            ssh_port,
            reason,
        } = settings;
        let endpoint = Endpoint::new(&region, endpoint_url.as_ref(), &instance_id, proxy);
        let client = http::client(roots, proxy);
        let mut config = aws_sdk_ssm::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.clone()))
            .http_client(client.clone())
            .identity_cache(IdentityCache::no_cache())
            .retry_config(RetryConfig::disabled())
            .timeout_config(http::timeouts())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        config.set_endpoint_url(endpoint_url.as_ref().map(Uri::to_string));
        let ssm = aws_sdk_ssm::Client::from_conf(config.build());
        let credentials = CredentialSource::new(identity, assume_role, client, endpoint.clone());
        Self { ssm, credentials, endpoint, instance_id, ssh_port, reason }
    }

    /// Uses `keys` for all later calls.
    pub(crate) fn replace_credentials(&self, keys: &Keys) {
        self.credentials.replace(keys);
    }

    async fn start_session(&self) -> Result<Started, ApiError> {
        let call = self.call(IamAction::StartSession);
        let output = self
            .ssm
            .start_session()
            .target(&self.instance_id)
            .document_name(SSH_DOCUMENT)
            .parameters("portNumber", vec![self.ssh_port.to_string()])
            .reason(&self.reason)
            .customize()
            .config_override(self.identity().await?)
            .send()
            .await
            .map_err(|error| self.failed(&call, &error))?;
        let Some(session_id) = output.session_id else {
            return Err(call.incomplete_answer("SessionId"));
        };
        match (output.stream_url, output.token_value.map(Token::from)) {
            (Some(stream_url), Some(token)) => Ok(Started { session_id, stream_url, token }),
            (stream_url, _) => {
                let missing = if stream_url.is_none() { "StreamUrl" } else { "TokenValue" };
                if let Err(error) = self.terminate_session(&session_id).await {
                    debug!(%error, "an unusable session was not terminated");
                }
                Err(call.incomplete_answer(missing).with_session_created())
            }
        }
    }

    async fn resume_session(&self, session_id: &str) -> Result<Resumed, ApiError> {
        let call = self.call(IamAction::ResumeSession);
        let output: ResumeSessionOutput = self
            .ssm
            .resume_session()
            .session_id(session_id)
            .customize()
            .config_override(self.identity().await?)
            .send()
            .await
            .map_err(|error| self.failed(&call, &error))?;
        let is_set = |text: &String| !text.is_empty();
        Ok(Resumed {
            stream_url: output.stream_url.filter(is_set),
            token: output.token_value.filter(is_set).map(Token::from),
        })
    }

    async fn terminate_session(&self, session_id: &str) -> Result<(), ApiError> {
        let call = self.call(IamAction::TerminateSession);
        let outcome = self
            .ssm
            .terminate_session()
            .session_id(session_id)
            .customize()
            .config_override(self.identity().await?)
            .send()
            .await;
        match outcome.map_err(|error| self.failed(&call, &error)) {
            Err(error) if error.kind() != ApiErrorKind::SessionGone => Err(error),
            // A session that is over already counts as terminated.
            _ => Ok(()),
        }
    }

    /// The SDK configuration with the credentials of one call.
    async fn identity(&self) -> Result<aws_sdk_ssm::config::Builder, ApiError> {
        let credentials = self.credentials.current().await?;
        Ok(aws_sdk_ssm::Config::builder().credentials_provider(credentials))
    }

    fn call(&self, action: IamAction) -> Call<'_> {
        Call { action, endpoint: &self.endpoint }
    }

    fn failed<E>(&self, call: &Call<'_>, error: &SdkError<E>) -> ApiError
    where
        E: aws_sdk_ssm::error::ProvideErrorMetadata + std::error::Error + 'static,
    {
        let error = from_sdk(call, error);
        if matches!(error.kind(), ApiErrorKind::Credentials | ApiErrorKind::CredentialsExpired) {
            self.credentials.invalidate();
        }
        error
    }
}

impl SessionApi for SsmClient {
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>> {
        Box::pin(self.start_session())
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>> {
        Box::pin(self.resume_session(session_id))
    }

    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ApiError>> {
        Box::pin(self.terminate_session(session_id))
    }

    fn sign_opening<'a>(&'a self, uri: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>> {
        Box::pin(async move {
            if signing::is_signed(uri) {
                return Ok(SignedHeaders::new());
            }
            let credentials = self.credentials.current().await?;
            signing::sign_opening(uri, &self.endpoint.region, credentials)
        })
    }

    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>> {
        Box::pin(self.credentials.caller())
    }

    fn session_ended(&self, _: &str) {}
}

#[cfg(test)]
mod tests;
