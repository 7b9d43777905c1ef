//! The control plane on the AWS SDK: start, resume and terminate sessions, sign the opening of a data channel.
//!
//! With static keys the clients are built directly: no profile file is opened and no metadata service is
//! asked, so that a missing key can never fall back to the identity of the host. Credentials are resolved
//! here, before each call, and handed to the SDK call by call: renewed keys hold from the next call on,
//! and a refusal of `sts:AssumeRole` is told as what it is.

mod credentials;
mod endpoint;
mod sdk_error;
mod service_error;
pub(crate) mod settings;
mod signing;

use std::time::Duration;

use aws_sdk_ssm::{
    config::{
        BehaviorVersion, IdentityCache, Region, RuntimeComponents, SharedHttpClient,
        StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::SdkError,
    operation::resume_session::ResumeSessionOutput,
};
use aws_smithy_http_client::{
    Builder, Connector,
    tls::{Provider, rustls_provider::CryptoMode},
};
use futures_util::future::BoxFuture;
use http::Uri;
use tracing::debug;

use crate::{
    net::{
        proxy::{self, Proxy},
        tls::Trust,
    },
    session::{Keys, Resumed, SessionApi, SignedHeaders, Started, Token},
};

pub use crate::session::partition::{Partition, partition};
pub use credentials::{AssumeRole, Identity, session_name};
pub use sdk_error::{ApiError, ApiErrorKind};

use credentials::CredentialSource;
use endpoint::{Call, Place};

/// What the control plane of one bastion is made from.
#[derive(Debug)]
pub struct Settings {
    /// Who calls.
    pub identity: Identity,
    /// A role to take first, with the credentials of `identity`.
    pub assume_role: Option<AssumeRole>,
    /// Such as `ap-northeast-1`.
    pub region: String,
    /// In place of the region's public SSM endpoint. A loopback one serves for STS too.
    pub endpoint_url: Option<Uri>,
    /// `i-…` or `mi-…`.
    pub instance_id: String,
    /// Where sshd listens on the bastion's loopback.
    pub ssh_port: u16,
    /// Shown in the session's history, see [`reason`].
    pub reason: String,
}

/// [`SessionApi`] on the AWS SDK.
#[derive(Debug)]
pub struct ControlPlane {
    ssm: aws_sdk_ssm::Client,
    credentials: CredentialSource,
    place: Place,
    instance_id: String,
    ssh_port: u16,
    reason: String,
}

impl ControlPlane {
    /// Builds the clients; opens no connection and no file.
    pub fn new(settings: Settings, trust: &Trust, proxy: &Proxy) -> Self {
        let Settings { identity, assume_role, region, endpoint_url, instance_id, ssh_port, reason } =
            settings;
        let place = Place::new(&region, endpoint_url.as_ref(), &instance_id, proxy);
        let http = http_client(trust, proxy);
        let mut config = aws_sdk_ssm::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.clone()))
            .http_client(http.clone())
            .identity_cache(IdentityCache::no_cache())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        config.set_endpoint_url(endpoint_url.as_ref().map(Uri::to_string));
        let ssm = aws_sdk_ssm::Client::from_conf(config.build());
        let credentials = CredentialSource::new(identity, assume_role, http, place.clone());
        Self { ssm, credentials, place, instance_id, ssh_port, reason }
    }

    /// Uses `keys` for all later calls, in place of those that there were.
    pub fn replace_credentials(&self, keys: &Keys) {
        self.credentials.replace(keys);
    }

    async fn start_session(&self) -> Result<Started, ApiError> {
        let call = Call { name: "StartSession", action: "ssm:StartSession", place: &self.place };
        let output = self
            .ssm
            .start_session()
            .target(&self.instance_id)
            .document_name(DOCUMENT)
            .parameters("portNumber", vec![self.ssh_port.to_string()])
            .reason(&self.reason)
            .customize()
            .config_override(self.identity().await?)
            .send()
            .await
            .map_err(|error| self.refused(&call, &error))?;
        let Some(session_id) = output.session_id else {
            return Err(ApiError::incomplete(&call, "SessionId"));
        };
        match (output.stream_url, output.token_value.map(Token::from)) {
            (Some(stream_url), Some(token)) => Ok(Started { session_id, stream_url, token }),
            (stream_url, _) => {
                let missing = if stream_url.is_none() { "StreamUrl" } else { "TokenValue" };
                if let Err(error) = self.terminate_session(&session_id).await {
                    debug!(%error, "a session that cannot be used was not terminated");
                }
                Err(ApiError::incomplete(&call, missing))
            }
        }
    }

    async fn resume_session(&self, session_id: &str) -> Result<Resumed, ApiError> {
        let call = Call { name: "ResumeSession", action: "ssm:ResumeSession", place: &self.place };
        let output: ResumeSessionOutput = self
            .ssm
            .resume_session()
            .session_id(session_id)
            .customize()
            .config_override(self.identity().await?)
            .send()
            .await
            .map_err(|error| self.refused(&call, &error))?;
        let given = |text: &String| !text.is_empty();
        Ok(Resumed {
            stream_url: output.stream_url.filter(given),
            token: output.token_value.filter(given).map(Token::from),
        })
    }

    async fn terminate_session(&self, session_id: &str) -> Result<(), ApiError> {
        let call =
            Call { name: "TerminateSession", action: "ssm:TerminateSession", place: &self.place };
        let outcome = self
            .ssm
            .terminate_session()
            .session_id(session_id)
            .customize()
            .config_override(self.identity().await?)
            .send()
            .await;
        match outcome.map_err(|error| self.refused(&call, &error)) {
            Err(error) if error.kind() != ApiErrorKind::SessionGone => Err(error),
            // Over already counts as ended.
            _ => Ok(()),
        }
    }

    /// The credentials of this very call.
    async fn identity(&self) -> Result<aws_sdk_ssm::config::Builder, ApiError> {
        let credentials = self.credentials.current().await?;
        Ok(aws_sdk_ssm::Config::builder().credentials_provider(credentials))
    }

    fn refused<E>(&self, call: &Call<'_>, error: &SdkError<E>) -> ApiError
    where
        E: aws_sdk_ssm::error::ProvideErrorMetadata + std::error::Error + 'static,
    {
        let error = ApiError::from_sdk(call, error);
        if matches!(error.kind(), ApiErrorKind::Credentials | ApiErrorKind::CredentialsExpired) {
            self.credentials.forget();
        }
        error
    }
}

impl SessionApi for ControlPlane {
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
            signing::sign_opening(uri, &self.place.region, credentials)
        })
    }

    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>> {
        Box::pin(self.credentials.caller())
    }

    fn over(&self, _: &str) {}
}

/// Says in the session's history what it was for: `name` of the connection, and the runner's job.
///
/// At most 256 characters without line breaks, as the API demands.
pub fn reason(name: &str, job_id: Option<&str>) -> String {
    let whole = match job_id {
        Some(job_id) => format!("ssm-sidecar {name} (job {job_id})"),
        None => format!("ssm-sidecar {name}"),
    };
    whole.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect()
}

fn http_client(trust: &Trust, proxy: &Proxy) -> SharedHttpClient {
    let (tls, proxy) = (trust.sdk_context(), proxy.sdk_config());
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(tls.clone())
            .proxy_config(proxy.clone())
            .enable_tcp_nodelay(true);
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.build()
    })
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT).build()
}

/// Whether a loopback endpoint was given, as in tests and with the emulator.
fn is_loopback(endpoint: &Uri) -> bool {
    endpoint.host().is_some_and(proxy::is_loopback)
}

/// The AWS-owned document whose sessions carry one plain byte stream to a port of the instance.
const DOCUMENT: &str = "AWS-StartSSHSession";

/// Longest `Reason` that `StartSession` takes, in characters (API reference).
const MAX_REASON: usize = 256;

/// For TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(10);

/// For one call from connecting to the last byte of the answer.
const ATTEMPT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
