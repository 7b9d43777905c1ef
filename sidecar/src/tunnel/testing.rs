//! AWS, agent, sshd and target in this process, for tests on the paused clock.

use std::{io, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::Uri;
use parking_lot::Mutex;

use super::lanes::LaneConfig;
use crate::{
    config,
    net::{
        dial::{Connector, Dial, Transport},
        proxy::Proxy,
        tls::RootCertificates,
    },
    runtime::shutdown::Shutdown,
    session::{ApiError, ApiErrorKind, Resumed, SessionApi, SignedHeaders, Started, Token},
};

/// Clones share the world.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    started: u64,
}

impl World {
    /// The configuration of lanes in this world, by a config with `rest` after its other fields.
    pub(crate) fn lane_config(&self, rest: &str) -> Arc<LaneConfig> {
        let settings = config::tests::settings(rest);
        let connector = Connector {
            roots: RootCertificates::from_pem(b""),
            proxy: Proxy::default(),
            dial: Arc::new(self.clone()),
        };
        let api = Arc::new(self.clone());
        Arc::new(LaneConfig::new(&settings, api, connector, Shutdown::default()))
    }
}

impl SessionApi for World {
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>> {
        Box::pin(async {
            let mut state = self.state.lock();
            state.started += 1;
            Ok(Started {
                session_id: format!("s-{}", state.started),
                stream_url: String::new(),
                token: Token::from(String::new()),
            })
        })
    }

    fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>> {
        Box::pin(async { Err(ApiError::new(ApiErrorKind::AccessDenied, "denied", "")) })
    }

    fn terminate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ApiError>> {
        Box::pin(async { Ok(()) })
    }

    fn sign_opening<'a>(&'a self, _: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>> {
        Box::pin(async { Ok(SignedHeaders::new()) })
    }

    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>> {
        Box::pin(async { Err(ApiError::aborted()) })
    }

    fn session_ended(&self, _: &str) {}
}

impl Dial for World {
    fn dial<'a>(
        &'a self,
        _: &'a Uri,
        _: &'a str,
        _: u16,
    ) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Err(io::ErrorKind::ConnectionRefused.into())
        })
    }
}
