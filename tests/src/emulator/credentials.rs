//! Access keys: their owner, their expiry, and whether a request was signed with them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use super::{
    iam::Policy,
    journal::lock,
    sigv4::{Received, Refusal},
};

/// A caller.
#[derive(Debug)]
pub(crate) struct Principal {
    pub(crate) arn: String,
    /// User name, or name of the role's session: SSM session ids begin with it.
    pub(crate) name: String,
    /// `aws:userid`.
    pub(crate) user_id: String,
    pub(crate) is_user: bool,
    /// Policy of an assumed role or of a further user; `None` for the first user, whose policy is the
    /// emulator's own and can change.
    pub(crate) policy: Option<Policy>,
}

impl Principal {
    pub(crate) fn user(account: &str, name: &str) -> Self {
        Self {
            arn: format!("arn:aws:iam::{account}:user/{name}"),
            name: name.to_owned(),
            user_id: "AIDAIOSFODNN7EXAMPLE".to_owned(),
            is_user: true,
            policy: None,
        }
    }

    /// A further user, with its own policy.
    pub(crate) fn another_user(account: &str, name: &str, policy: Policy) -> Self {
        let user_id = format!("AIDA{}", name.to_ascii_uppercase().replace('-', ""));
        Self { user_id, policy: Some(policy), ..Self::user(account, name) }
    }

    pub(crate) fn session_of(role: &Role, name: &str) -> Self {
        let arn = role.arn.replacen(":iam:", ":sts:", 1).replacen(":role/", ":assumed-role/", 1);
        Self {
            arn: format!("{arn}/{name}"),
            name: name.to_owned(),
            user_id: format!("AROAIOSFODNN7EXAMPLE:{name}"),
            is_user: false,
            policy: role.policy.clone(),
        }
    }
}

/// A role that the emulator's keys may assume: its trust policy names them.
#[derive(Clone, Debug)]
pub struct Role {
    pub(crate) arn: String,
    pub(crate) external_id: Option<String>,
    pub(crate) policy: Option<Policy>,
    pub(crate) lifetime: Option<Duration>,
}

impl Role {
    /// A role such as `arn:aws:iam::123456789012:role/transfer`, with the emulator's policy.
    pub fn new(arn: &str) -> Self {
        Self { arn: arn.to_owned(), external_id: None, policy: None, lifetime: None }
    }

    /// Requires this external id.
    #[must_use]
    pub fn external_id(mut self, id: &str) -> Self {
        self.external_id = Some(id.to_owned());
        self
    }

    /// Gives the role its own policy.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// How long the role's keys are valid, whatever duration was requested.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }
}

/// A key as it was issued.
pub(crate) struct Key {
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
    pub(crate) expires: Option<SystemTime>,
    pub(crate) principal: Arc<Principal>,
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Key").field("principal", &self.principal).finish_non_exhaustive()
    }
}

/// Why a caller could not be authenticated.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum AuthError {
    Missing,
    Incomplete(String),
    UnknownKey,
    Expired,
    Invalid(String),
}

/// All keys that exist.
#[derive(Debug, Default)]
pub(crate) struct Keys(Mutex<BTreeMap<String, Key>>);

impl Keys {
    pub(crate) fn add(&self, id: &str, key: Key) {
        lock(&self.0).insert(id.to_owned(), key);
    }

    /// Expires this key, or all keys if none is named.
    pub(crate) fn expire(&self, id: Option<&str>) {
        for (other, key) in lock(&self.0).iter_mut() {
            if id.is_none_or(|id| id == other) {
                key.expires = Some(SystemTime::UNIX_EPOCH);
            }
        }
    }

    /// Determines the caller of a request to a service.
    pub(crate) fn authenticate(
        &self,
        request: &Received<'_>,
        service: &str,
        region: &str,
    ) -> Result<Arc<Principal>, AuthError> {
        let refused = |refusal| match refusal {
            Refusal::Missing => AuthError::Missing,
            Refusal::Incomplete(text) => AuthError::Incomplete(text),
            Refusal::Invalid(text) => AuthError::Invalid(text),
        };
        let claim = request.claim().map_err(refused)?;
        let keys = lock(&self.0);
        let key = keys.get(&claim.access_key_id).ok_or(AuthError::UnknownKey)?;
        if key.token != claim.session_token {
            return Err(AuthError::UnknownKey);
        }
        let now = SystemTime::now();
        if key.expires.is_some_and(|expires| expires <= now) {
            return Err(AuthError::Expired);
        }
        request.verify(&claim, &key.secret, service, region, now).map_err(refused)?;
        Ok(Arc::clone(&key.principal))
    }
}
