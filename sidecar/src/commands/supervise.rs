//! What `run` and `check` share: the monitor's side of a job.

use std::sync::Arc;

use runner_protocol::Config;

use super::error::Error;
use crate::{
    aws::{SsmClient, SsmSettings},
    channel::websocket::StreamEndpoint,
    config::Aws,
    monitor::{Monitor, RequestHandler},
    net::{
        dial::{Connector, Direct},
        proxy::Proxy,
        tls::RootCertificates,
    },
    runtime::hardening::MissingProtection,
};

/// Builds the control plane while the worker is being sandboxed, and waits until it is. Returns also the protections
/// that the worker lacks.
///
/// `port`: of the clients' listener; `None` for a check.
pub(super) async fn prepare(
    monitor: &mut Monitor,
    config: &Config,
    port: Option<u16>,
) -> Result<(RequestHandler, Arc<SsmClient>, Vec<MissingProtection>), Error> {
    let (roots, proxy) = (RootCertificates::load(), Proxy::from_env()?);
    let aws = Aws::from_config(config.aws.clone())?;
    let settings = SsmSettings::from_config(config, &aws);
    let client = Arc::new(SsmClient::new(settings, &roots, &proxy));
    let connector = Connector { roots, proxy, dial: Arc::new(Direct) };
    let endpoint = StreamEndpoint::new(&aws, connector);
    let api = Arc::<SsmClient>::clone(&client);
    let handler = RequestHandler::new(api, endpoint, config.events, port);
    let missing = monitor.sandboxed().await?;
    Ok((handler, client, missing))
}
