//! Where a call goes and whom it concerns: what its failure is told with.

use http::Uri;

use super::{is_loopback, partition};
use crate::net::proxy::Proxy;

/// Where calls go and whom they concern.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) region: String,
    /// As given by the document, for the SDK.
    pub(super) endpoint_url: Option<String>,
    /// Who answers.
    pub(super) host: String,
    /// The instance, or the role.
    pub(super) subject: Subject,
    through_proxy: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Subject {
    Instance(String),
    Role(String),
}

impl Place {
    pub(super) fn new(
        region: &str,
        endpoint: Option<&Uri>,
        instance_id: &str,
        proxy: &Proxy,
    ) -> Self {
        let host = match endpoint {
            Some(endpoint) => {
                endpoint.authority().map_or("", |authority| authority.as_str()).to_owned()
            }
            None => format!("ssm.{region}.{}", partition(region).suffix),
        };
        Self {
            through_proxy: proxy.towards(&host).is_some(),
            region: region.to_owned(),
            endpoint_url: endpoint.map(Uri::to_string),
            host,
            subject: Subject::Instance(instance_id.to_owned()),
        }
    }

    /// The same for STS: its own regional endpoint, unless all of AWS is played by one on loopback.
    pub(super) fn for_sts(&self, role_arn: &str) -> Self {
        let subject = Subject::Role(role_arn.to_owned());
        let endpoint = self
            .endpoint_url
            .clone()
            .filter(|endpoint| endpoint.parse().is_ok_and(|endpoint: Uri| is_loopback(&endpoint)));
        let host = match endpoint {
            Some(_) => self.host.clone(),
            None => format!("sts.{}.{}", self.region, partition(&self.region).suffix),
        };
        Self { endpoint_url: endpoint, host, subject, ..self.clone() }
    }

    pub(super) fn way_out(&self) -> String {
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
                "check `aws.region`, {allow}; for a private endpoint set `aws.endpoint_url`"
            ),
        }
    }
}

/// One call, for the words about its failure.
pub(super) struct Call<'a> {
    pub(super) name: &'static str,
    pub(super) action: &'static str,
    pub(super) place: &'a Place,
}
