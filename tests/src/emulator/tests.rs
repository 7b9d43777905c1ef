//! The emulator as a whole: the API by the AWS SDK, the data channel by a plain client.

mod agent_faults;
mod api;
mod channel;
mod client;
mod endings;
mod faults;
mod flow_control;

use aws_sdk_ssm::{
    Client as Ssm,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig},
    operation::start_session::StartSessionOutput,
};
use aws_smithy_http_client::Builder as HttpBuilder;

use super::{Builder, Emulator, Pacing, Policy};
use client::Client;

const INSTANCE: &str = "i-0123456789abcdef0";
const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const REGION: &str = "ap-northeast-1";

fn builder() -> Builder {
    Emulator::builder()
        .instance(INSTANCE)
        .access_key(KEY, SECRET)
        .policy(Policy::full(INSTANCE))
        .pacing(Pacing::Unpaced)
}

fn ssm(emulator: &Emulator, credentials: Credentials) -> Ssm {
    let config = aws_sdk_ssm::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(emulator.api_url())
        .credentials_provider(credentials)
        .retry_config(RetryConfig::disabled())
        .http_client(HttpBuilder::new().build_http());
    Ssm::from_conf(config.build())
}

fn keys() -> Credentials {
    credentials(KEY, SECRET, None)
}

fn credentials(id: &str, secret: &str, token: Option<&str>) -> Credentials {
    Credentials::new(id, secret, token.map(str::to_owned), None, "test")
}

async fn start(emulator: &Emulator, port: u16) -> StartSessionOutput {
    let started = ssm(emulator, keys())
        .start_session()
        .target(INSTANCE)
        .document_name("AWS-StartSSHSession")
        .parameters("portNumber", vec![port.to_string()])
        .reason("a test")
        .send();
    started.await.unwrap()
}

/// A client whose handshake is done.
async fn connected(emulator: &Emulator, port: u16) -> (Client, String) {
    let started = start(emulator, port).await;
    let mut client = Client::connect(started.stream_url().unwrap(), &[]).await.unwrap();
    client.open(started.token_value().unwrap()).await;
    client.handshake().await;
    (client, started.session_id().unwrap().to_owned())
}
