//! The credentials of each call: the document's keys, or the host's own where the document says so, and
//! the role that is assumed with them.

use std::{
    fmt,
    sync::{
        Mutex as StdMutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
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
    endpoint::{Call, Place},
    sdk_error::{ApiError, root_cause},
    timeouts,
};
use crate::{runtime::hardening, session::Keys};

/// Who calls AWS.
#[derive(Debug)]
pub enum Identity {
    /// These keys, and nothing else when they are refused.
    Keys(Keys),
    /// The SDK's default chain: environment variables, profile files, web identity (IRSA), container and
    /// instance credentials. Only ever on the document's word.
    Environment,
}

/// A role to assume.
#[derive(Clone, Debug)]
pub struct AssumeRole {
    /// `arn:aws:iam::123456789012:role/name`.
    pub role_arn: String,
    /// What the role's trust policy asks for, if it does.
    pub external_id: Option<String>,
    /// Shown in the customer's trail, see [`session_name`].
    pub session_name: String,
}

/// Makes a role session name from the name of the connection: 2 to 64 characters of those that STS takes.
pub fn session_name(name: &str) -> String {
    let taken = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    let name = name.chars().map(|c| if taken(c) { c } else { '-' });
    "ssm-sidecar-".chars().chain(name).take(MAX_SESSION_NAME).collect()
}

/// Gives the credentials of each call, and keeps those that cost a call of their own.
pub(super) struct CredentialSource {
    base: StdMutex<Base>,
    /// Changes whenever what was kept must not be used any more.
    generation: AtomicU64,
    /// Held while credentials are fetched, so that calls at the same time fetch them once.
    kept: Mutex<Option<Kept>>,
    chain: OnceCell<DefaultCredentialsChain>,
    role: Option<Role>,
    http: SharedHttpClient,
    place: Place,
}

enum Base {
    Keys(Credentials),
    Environment,
}

struct Role {
    settings: AssumeRole,
    sts: aws_sdk_sts::Client,
}

struct Kept {
    credentials: Credentials,
    generation: u64,
}

impl CredentialSource {
    pub(super) fn new(
        identity: Identity,
        assume_role: Option<AssumeRole>,
        http: SharedHttpClient,
        place: Place,
    ) -> Self {
        let base = match identity {
            Identity::Keys(keys) => Base::Keys(credentials(&keys)),
            Identity::Environment => Base::Environment,
        };
        let role = assume_role.map(|settings| {
            let place = place.for_sts(&settings.role_arn);
            Role { settings, sts: sts_client(&place, &http) }
        });
        Self {
            base: StdMutex::new(base),
            generation: AtomicU64::new(0),
            kept: Mutex::new(None),
            chain: OnceCell::new(),
            role,
            http,
            place,
        }
    }

    /// Uses `keys` from now on, whatever was used before; a role assumed before is assumed anew.
    pub(super) fn replace(&self, keys: &Keys) {
        let mut base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        *base = Base::Keys(credentials(keys));
        self.forget();
    }

    /// Fetches anew before the next call: AWS has refused what there was.
    pub(super) fn forget(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The credentials to use now, fetched or refreshed where necessary. Cancel-safe.
    pub(super) async fn current(&self) -> Result<Credentials, ApiError> {
        if self.role.is_none()
            && let Some(keys) = self.keys()
        {
            return Ok(keys);
        }
        let mut kept = self.kept.lock().await;
        let generation = self.generation.load(Ordering::Acquire);
        let now = SystemTime::now();
        let usable = kept.as_ref().filter(|kept| kept.generation == generation);
        if let Some(kept) = usable
            && lasts(&kept.credentials, now + REFRESH_BEFORE)
        {
            return Ok(kept.credentials.clone());
        }
        match self.fetch().await {
            Ok(credentials) => {
                *kept = Some(Kept { credentials: credentials.clone(), generation });
                Ok(credentials)
            }
            Err(error) => match usable {
                Some(kept) if lasts(&kept.credentials, now + LEAST_LIFE) => {
                    warn!(%error, "credentials are not renewed yet; the present ones are used");
                    Ok(kept.credentials.clone())
                }
                _ => Err(error),
            },
        }
    }

    /// Asks AWS whose the credentials are: an ARN. No permission is needed for that. Cancel-safe.
    pub(super) async fn caller(&self) -> Result<String, ApiError> {
        let credentials = self.current().await?;
        let role = self.role.as_ref().map_or("", |role| &role.settings.role_arn);
        let place = self.place.for_sts(role);
        let call =
            Call { name: "GetCallerIdentity", action: "sts:GetCallerIdentity", place: &place };
        let output = sts_client(&place, &self.http)
            .get_caller_identity()
            .customize()
            .config_override(aws_sdk_sts::Config::builder().credentials_provider(credentials))
            .send()
            .await
            .map_err(|error| ApiError::from_sdk(&call, &error))?;
        output.arn.ok_or_else(|| ApiError::incomplete(&call, "Arn"))
    }

    fn keys(&self) -> Option<Credentials> {
        match &*self.base.lock().unwrap_or_else(PoisonError::into_inner) {
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
            Some(role) => role.assume(base, &self.place).await,
            None => Ok(base),
        }
    }

    async fn environment(&self) -> Result<Credentials, ApiError> {
        let chain = self.chain.get_or_init(|| async {
            let region = Region::new(self.place.region.clone());
            let config = ProviderConfig::without_region()
                .with_region(Some(region.clone()))
                .with_behavior_version(Some(BehaviorVersion::latest()))
                .with_http_client(self.http.clone());
            DefaultCredentialsChain::builder().region(region).configure(config).build().await
        });
        let outcome = chain.await.provide_credentials().await;
        outcome.map_err(|error| {
            let passing = matches!(error, CredentialsError::ProviderTimedOut(_));
            let nothing_found = matches!(error, CredentialsError::CredentialsNotLoaded(_));
            let cause = (!nothing_found).then(|| root_cause(&error));
            ApiError::no_credentials(cause.as_deref(), passing)
        })
    }
}

impl Role {
    async fn assume(&self, base: Credentials, place: &Place) -> Result<Credentials, ApiError> {
        let place = place.for_sts(&self.settings.role_arn);
        let call = Call { name: "AssumeRole", action: "sts:AssumeRole", place: &place };
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
            .map_err(|error| ApiError::from_sdk(&call, &error))?;
        let given = output.credentials.ok_or_else(|| ApiError::incomplete(&call, "Credentials"))?;
        let expires = SystemTime::try_from(given.expiration).ok();
        debug!(role = self.settings.role_arn, ?expires, "role assumed");
        Ok(kept_from_swap(Credentials::new(
            given.access_key_id,
            given.secret_access_key,
            Some(given.session_token),
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

fn sts_client(place: &Place, http: &SharedHttpClient) -> aws_sdk_sts::Client {
    let mut config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(place.region.clone()))
        .http_client(http.clone())
        .identity_cache(IdentityCache::no_cache())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts());
    config.set_endpoint_url(place.endpoint_url.clone());
    aws_sdk_sts::Client::from_conf(config.build())
}

/// Whether `credentials` are valid at `time`; without an expiry they are.
fn lasts(credentials: &Credentials, time: SystemTime) -> bool {
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

/// Clones share what is kept.
fn kept_from_swap(credentials: Credentials) -> Credentials {
    let secrets = [Some(credentials.secret_access_key()), credentials.session_token()];
    hardening::keep_from_swap(secrets.into_iter().flatten().map(str::as_bytes));
    credentials
}

/// Named in the SDK's logs.
const PROVIDER: &str = "ssm-sidecar";

/// Credentials that end sooner are fetched anew first. An assumed role lasts an hour by default, and the
/// data channel is resumed once in each.
const REFRESH_BEFORE: Duration = Duration::from_mins(5);

/// Credentials that end sooner are not worth a call.
const LEAST_LIFE: Duration = Duration::from_secs(5);

/// Longest `RoleSessionName` (STS API reference).
const MAX_SESSION_NAME: usize = 64;
