//! The way to AWS in a company's network: over TLS, through a proxy that alone knows where the names lead.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tests::fixtures::{Authority, ConnectProxy, Sidecar, TcpServer, TlsFront};
use tokio::net::TcpStream;

use super::tried;
use crate::{
    echo::echoes,
    world::{LIMIT, STOP, World, assert_no_secret, may_terminate},
};

const API: &str = "ssm.ap-northeast-1.amazonaws.com";
const STREAM: &str = "ssmmessages.ap-northeast-1.amazonaws.com";
const PASSWORD: &str = "proxyPasswordOfATest";

/// With the endpoints that AWS has, and none in the config.
#[tokio::test]
async fn api_and_stream_go_over_tls_through_a_connect_proxy() {
    let world = World::with(|builder| {
        builder.policy(may_terminate()).stream_url(&format!("wss://{STREAM}"))
    })
    .await;
    let authority = Authority::for_names(&[API, STREAM]).unwrap();
    let port_of = |url: &str| url.rsplit_once(':').unwrap().1.parse().unwrap();
    let api = TlsFront::start(&authority, port_of(world.emulator.api_url())).await.unwrap();
    let stream = TlsFront::start(&authority, port_of(&world.emulator.stream_url())).await.unwrap();
    let (api_name, stream_name) = (format!("{API}:443"), format!("{STREAM}:443"));
    let proxy =
        ConnectProxy::start(&[(&api_name, api.port()), (&stream_name, stream.port())]).await;
    let proxy = proxy.unwrap();

    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port()).with(&json!({ "aws": { "endpoint_url": null } }));
    let url = proxy.url().replace("://", &format!("://job:{PASSWORD}@"));
    let mut sidecar = Sidecar::spawn_with(&config, |command| {
        command.env("HTTPS_PROXY", url).env("SSL_CERT_FILE", authority.bundle());
    })
    .await
    .unwrap();
    let port = sidecar.ready(LIMIT).await.unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert!(echoes(&mut client).await);
    drop(client);
    sidecar.close_stdin();
    let exit = sidecar.exit(STOP).await.unwrap();
    assert_eq!(exit.status.code(), Some(0), "{}", exit.text());

    let heads = proxy.heads();
    for head in &heads {
        let (request, fields) = head.split_once("\r\n").unwrap();
        let known = [&api_name, &stream_name].map(|name| format!("CONNECT {name} HTTP/1.1"));
        assert!(known.iter().any(|known| known == request), "{head}");
        for field in fields.lines().filter(|field| !field.is_empty()) {
            let name = field.split(':').next().unwrap().to_lowercase();
            // Besides the proxy's own password nothing that it could learn from.
            assert!(["host", "proxy-authorization", "user-agent"].contains(&&*name), "{head}");
        }
        assert_no_secret(head, &config);
    }
    for name in [&api_name, &stream_name] {
        assert!(heads.iter().any(|head| head.contains(&**name)), "no {name} in {heads:?}");
    }
    // As it is, and as it travels.
    let header = STANDARD.encode(format!("job:{PASSWORD}"));
    for secret in [PASSWORD, &header] {
        assert!(!exit.text().contains(secret), "{}", exit.text());
    }
    assert!(heads.iter().all(|head| head.contains(&header)), "the form in which it travels");
    assert_no_secret(&exit.text(), &config);
    tried("the endpoints of AWS by TLS through a CONNECT proxy");
    world.finish().await;
}
