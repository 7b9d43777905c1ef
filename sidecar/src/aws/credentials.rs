//! The credentials of each call: the config's keys, or the host's own where the config says so, and the role that is
//! assumed with them.

use parking_lot::Mutex as StdMutex;
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use aws_config::{
    default_provider::credentials::DefaultCredentialsChain, provider_config::ProviderConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials as _, error::CredentialsError},
};
use aws_sdk_ssm::config::{
    BehaviorVersion, IdentityCache, Region, SharedHttpClient, retry::RetryConfig,
};
use tokio::sync::{Mutex, OnceCell};
use tracing::{debug, warn};

use super::{
    endpoint::{Call, Endpoint},
    http::timeouts,
    sdk_error::{from_sdk, no_credentials, root_cause},
};
use crate::{
    runtime::hardening,
    session::{ApiError, IamAction, Keys},
};

/// The identity of calls to AWS.
#[derive(Debug)]
pub(crate) enum Identity {
    /// These keys only: there is no fallback when AWS refuses them.
    Keys(Keys),
    /// The SDK's default chain: environment variables, profile files, web identity (IRSA), container and
    /// instance credentials. Only with `"credentials": "environment"` in the config.
    Environment,
}

/// A role to assume.
#[derive(Clone, Debug)]
pub(crate) struct AssumeRole {
    /// `arn:aws:iam::123456789012:role/name`.
    pub(crate) role_arn: String,
    /// Given where the role's trust policy requires one.
    pub(crate) external_id: Option<String>,
    /// Shown in the customer's `CloudTrail`.
    pub(crate) session_name: String,
}

/// Resolves the credentials of each call, and caches those that need a call themselves.
pub(super) struct CredentialSource {
    base: StdMutex<Base>,
    /// Incremented when the cached credentials must not be used any more.
    generation: AtomicU64,
    /// Locked while credentials are fetched, so that concurrent calls fetch them once.
    cached: Mutex<Option<Cached>>,
    chain: OnceCell<DefaultCredentialsChain>,
    role: Option<Role>,
    http: SharedHttpClient,
    endpoint: Endpoint,
}

enum Base {
    Keys(Credentials),
    Environment,
}

struct Role {
    settings: AssumeRole,
    sts: aws_sdk_sts::Client,
}

struct Cached {
    credentials: Credentials,
    generation: u64,
}

impl CredentialSource {
    pub(super) fn new(
        identity: Identity,
        assume_role: Option<AssumeRole>,
        http: SharedHttpClient,
        endpoint: Endpoint,
    ) -> Self {
        let base = match identity {
            Identity::Keys(keys) => Base::Keys(credentials(&keys)),
            Identity::Environment => Base::Environment,
        };
        let role = assume_role.map(|settings| {
            let endpoint = endpoint.for_sts(Some(&settings.role_arn));
            Role { settings, sts: sts_client(&endpoint, &http) }
        });
        Self {
            base: StdMutex::new(base),
            generation: AtomicU64::new(0),
            cached: Mutex::new(None),
            chain: OnceCell::new(),
            role,
            http,
            endpoint,
        }
    }

    /// Uses `keys` from now on; a role is assumed again with them.
    pub(super) fn replace(&self, keys: &Keys) {
        let mut base = self.base.lock();
        *base = Base::Keys(credentials(keys));
        self.invalidate();
    }

    /// Makes the next call fetch credentials again, because AWS has refused the cached ones or the keys were replaced.
    pub(super) fn invalidate(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns the credentials, fetched or refreshed where necessary. Cancel-safe.
    pub(super) async fn current(&self) -> Result<Credentials, ApiError> {
        if self.role.is_none()
            && let Some(keys) = self.keys()
        {
            return Ok(keys);
        }
        let mut cached = self.cached.lock().await;
        let generation = self.generation.load(Ordering::Acquire);
        let now = SystemTime::now();
        let usable = cached.as_ref().filter(|cached| cached.generation == generation);
        if let Some(cached) = usable
            && valid_at(&cached.credentials, now + REFRESH_BEFORE)
        {
            return Ok(cached.credentials.clone());
        }
        match self.fetch().await {
            Ok(credentials) => {
                *cached = Some(Cached { credentials: credentials.clone(), generation });
                Ok(credentials)
            }
            Err(error) => match usable {
                Some(cached) if valid_at(&cached.credentials, now + LEAST_LIFE) => {
                    warn!(%error, "credentials could not be refreshed; the present ones are still used");
                    Ok(cached.credentials.clone())
                }
                _ => Err(error),
            },
        }
    }

    /// Returns the ARN of the credentials' owner. Needs no permission. Cancel-safe.
    pub(super) async fn caller(&self) -> Result<String, ApiError> {
        let credentials = self.current().await?;
        let endpoint = self.endpoint.for_sts(None);
        let call = Call { action: IamAction::GetCallerIdentity, endpoint: &endpoint };
        let output = sts_client(&endpoint, &self.http)
            .get_caller_identity()
            .customize()
            .config_override(aws_sdk_sts::Config::builder().credentials_provider(credentials))
            .send()
            .await
            .map_err(|error| from_sdk(&call, &error))?;
        output.arn.ok_or_else(|| call.incomplete_answer("Arn"))
    }

    fn keys(&self) -> Option<Credentials> {
        match &*self.base.lock() {
            Base::Keys(keys) => Some(keys.clone()),
            Base::Environment => None,
        }
    }

    async fn fetch(&self) -> Result<Credentials, ApiError> {
        let base = match self.keys() {
            Some(keys) => keys,
            None => self.environment().await?,
        };
        match &self.role {
            Some(role) => role.assume(base, &self.endpoint).await,
            None => Ok(base),
        }
    }

    async fn environment(&self) -> Result<Credentials, ApiError> {
        let chain = self.chain.get_or_init(|| async {
            let region = Region::new(self.endpoint.region.clone());
            let config = ProviderConfig::without_region()
                .with_region(Some(region.clone()))
                .with_behavior_version(Some(BehaviorVersion::latest()))
                .with_http_client(self.http.clone());
            DefaultCredentialsChain::builder().region(region).configure(config).build().await
        });
        let outcome = chain.await.provide_credentials().await;
        outcome.map_err(|error| {
            let is_transient = matches!(error, CredentialsError::ProviderTimedOut(_));
            let none_found = matches!(error, CredentialsError::CredentialsNotLoaded(_));
            let cause = (!none_found).then(|| root_cause(&error));
            no_credentials(cause.as_deref(), is_transient)
        })
    }
}

impl Role {
    async fn assume(
        &self,
        base: Credentials,
        endpoint: &Endpoint,
    ) -> Result<Credentials, ApiError> {
        let endpoint = endpoint.for_sts(Some(&self.settings.role_arn));
        let call = Call { action: IamAction::AssumeRole, endpoint: &endpoint };
        let output = self
            .sts
            .assume_role()
            .role_arn(&self.settings.role_arn)
            .role_session_name(&self.settings.session_name)
            .set_external_id(self.settings.external_id.clone())
            .customize()
            .config_override(aws_sdk_sts::Config::builder().credentials_provider(base))
            .send()
            .await
            .map_err(|error| from_sdk(&call, &error))?;
        let credentials =
            output.credentials.ok_or_else(|| call.incomplete_answer("Credentials"))?;
        let expires = SystemTime::try_from(credentials.expiration).ok();
        debug!(role = self.settings.role_arn, ?expires, "role assumed");
        Ok(kept_from_swap(Credentials::new(
            credentials.access_key_id,
            credentials.secret_access_key,
            Some(credentials.session_token),
            expires,
            PROVIDER,
        )))
    }
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CredentialSource")
            .field("role", &self.role.as_ref().map(|role| &role.settings.role_arn))
            .finish_non_exhaustive()
    }
}

fn sts_client(endpoint: &Endpoint, http: &SharedHttpClient) -> aws_sdk_sts::Client {
    let mut config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(endpoint.region.clone()))
        .http_client(http.clone())
        .identity_cache(IdentityCache::no_cache())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts());
    config.set_endpoint_url(endpoint.endpoint_url.clone());
    aws_sdk_sts::Client::from_conf(config.build())
}

/// Whether `credentials` are valid at `time`; without an expiry they are.
fn valid_at(credentials: &Credentials, time: SystemTime) -> bool {
    credentials.expiry().is_none_or(|expiry| expiry > time)
}

fn credentials(keys: &Keys) -> Credentials {
    let session_token = keys.session_token.as_ref().map(|token| token.to_string());
    kept_from_swap(Credentials::new(
        keys.access_key_id.as_str(),
        keys.secret_access_key.as_str(),
        session_token,
        None,
        PROVIDER,
    ))
}

/// Locks the secrets in memory; clones share them.
fn kept_from_swap(credentials: Credentials) -> Credentials {
    let secrets = [Some(credentials.secret_access_key()), credentials.session_token()];
    hardening::keep_from_swap(secrets.into_iter().flatten().map(str::as_bytes));
    credentials
}

/// Provider name, for the SDK's logs.
const PROVIDER: &str = "ssm-sidecar";

/// Cached credentials that expire within this time are fetched again before a call. Those of an assumed role last an
/// hour by default, and a data channel is resumed once an hour.
const REFRESH_BEFORE: Duration = Duration::from_mins(5);

/// Cached credentials that expire within this time are not used, even if they cannot be fetched again.
const LEAST_LIFE: Duration = Duration::from_secs(5);
