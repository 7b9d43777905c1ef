//! The endpoint and the resource of a call, for the messages about its failure.

use http::Uri;

use runner_protocol::{Blame, region};

use crate::{
    net::proxy::{Proxy, is_loopback},
    session::{ApiError, ApiErrorKind, IamAction, partition::partition},
};

/// The service's endpoint, and the resource that calls concern.
#[derive(Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "the config's names")]
pub(super) struct Endpoint {
    pub(super) region: String,
    /// `aws.endpoint_url`; `None`: the SDK's own for the region.
    pub(super) endpoint_url: Option<String>,
    pub(super) host: String,
    /// `bastion.instance_id`.
    pub(super) instance_id: String,
    pub(super) resource: Resource,
    through_proxy: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Resource {
    Instance(String),
    Role(String),
    /// None: the call is about the caller itself.
    Caller,
}

impl Endpoint {
    pub(super) fn new(
        region: &str,
        endpoint_url: Option<&Uri>,
        instance_id: &str,
        proxy: &Proxy,
    ) -> Self {
        let host = match endpoint_url {
            Some(endpoint) => {
                endpoint.authority().map_or("", |authority| authority.as_str()).to_owned()
            }
            None => format!("ssm.{region}.{}", partition(region).suffix),
        };
        Self {
            through_proxy: proxy.route_for(&host).is_some(),
            region: region.to_owned(),
            endpoint_url: endpoint_url.map(Uri::to_string),
            host,
            instance_id: instance_id.to_owned(),
            resource: Resource::Instance(instance_id.to_owned()),
        }
    }

    /// Returns the endpoint for calls to STS about `role_arn`, else about the caller: the region's, or that of the config where it is at
    /// loopback, which means an emulator.
    pub(super) fn for_sts(&self, role_arn: Option<&str>) -> Self {
        let resource = role_arn.map_or(Resource::Caller, |arn| Resource::Role(arn.to_owned()));
        let endpoint = self.endpoint_url.clone().filter(|endpoint| is_loopback_url(endpoint));
        let host = match endpoint {
            Some(_) => self.host.clone(),
            None => format!("sts.{}.{}", self.region, partition(&self.region).suffix),
        };
        Self { endpoint_url: endpoint, host, resource, ..self.clone() }
    }

    /// The hint where the endpoint does not answer.
    pub(super) fn connectivity_hint(&self) -> String {
        let proxy = if self.through_proxy {
            "look into the proxy of `HTTPS_PROXY` that it goes through"
        } else {
            "or name a proxy in `HTTPS_PROXY`"
        };
        let host = &self.host;
        let allow = format!("allow outgoing HTTPS to `{host}`, {proxy}");
        match self.endpoint_url {
            Some(_) => format!("check `aws.endpoint_url`, {allow}"),
            None => format!(
                "check `aws.region`{}, {allow}; for a private endpoint set `aws.endpoint_url`",
                self.unknown_region()
            ),
        }
    }

    /// What to say of a region that may not exist: a new one is not known here, but has the form of one.
    fn unknown_region(&self) -> String {
        let region = &self.region;
        if region::is_known(region) {
            return String::new();
        }
        let nearest = region::nearest(region);
        let meant = nearest.map(|name| format!("; the nearest is `{name}`")).unwrap_or_default();
        format!(" (this version does not know `{region}`{meant})")
    }
}

/// One call, for the messages about its failure.
pub(super) struct Call<'a> {
    pub(super) action: IamAction,
    pub(super) endpoint: &'a Endpoint,
}

impl Call<'_> {
    /// The name of the API operation.
    pub(super) fn name(&self) -> &'static str {
        self.action.operation()
    }

    /// The error for an answer without the member `missing`.
    pub(super) fn incomplete_answer(&self, missing: &str) -> ApiError {
        let message = format!("the answer to {} has no {missing}", self.name());
        let hint = format!("check what answers as `{}`", self.endpoint.host);
        ApiError::new(ApiErrorKind::Internal, message, hint)
    }

    /// The error for an answer that does not come from AWS, but from a proxy, for example.
    pub(super) fn foreign_answer(&self, status: u16) -> ApiError {
        let host = &self.endpoint.host;
        let message =
            format!("what `{host}` answers to {} is not from AWS (HTTP {status})", self.name());
        let hint = "look for a proxy or a captive portal on the way, and check `aws.endpoint_url`";
        // What AWS refuses has its form: this is a refusal of something on the way.
        let is_refusal = matches!(status, 401 | 403 | 407 | 451 | 511);
        let kind = if is_refusal { ApiErrorKind::Proxy } else { ApiErrorKind::Internal };
        ApiError::new(kind, message, hint).blaming(Blame::Operator)
    }
}

fn is_loopback_url(url: &str) -> bool {
    url.parse().is_ok_and(|uri: Uri| uri.host().is_some_and(is_loopback))
}
