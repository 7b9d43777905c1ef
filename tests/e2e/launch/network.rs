//! The listening socket is in the job's network namespace, the sidecar outside.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
};

use nix::unistd::geteuid;
use runner_protocol::launch::{LaunchError, Stderr};
use serde_json::json;
use tests::fixtures::Namespace;
use tokio::{net::TcpSocket, time::timeout};

use super::{alone, assert_no_children, echo, launch, launcher};
use crate::world::{LIMIT, STOP, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listener_is_in_the_jobs_namespace_and_reached_from_nowhere_else() {
    let _alone = alone().await;
    let Ok(job) = Namespace::new() else {
        println!("skipped: no network namespace can be made here");
        return;
    };
    let world = World::start().await;
    let server = echo().await;
    let user = geteuid().as_raw();
    // Bound out here and not listening: no other test's server can have this port.
    let reserved = TcpSocket::new_v4().unwrap();
    reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = reserved.local_addr().unwrap().port();
    for (allowed, is_let_in) in [(None, true), (Some(user), true), (Some(user + 1), false)] {
        let allowed_uids = allowed.map(|user| [user]);
        let listen = json!({ "netns": job.path(), "port": port, "allowed_uids": allowed_uids });
        let config = world.config(server.port()).with(&json!({ "listen": listen }));
        let mut sidecar = launch(&launcher().await, &config).await;
        let ready = timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap();
        let address = ("127.0.0.1", ready.port);

        let outside = TcpStream::connect(address).unwrap_err();
        assert_eq!(outside.kind(), std::io::ErrorKind::ConnectionRefused);
        let answer = job.run(|| {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(b"ping")?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        });
        match answer {
            Ok(answer) => assert!(is_let_in && answer == *b"ping", "{allowed:?}"),
            Err(error) => assert!(!is_let_in, "{allowed:?}: {error}"),
        }
        let ended = timeout(STOP, sidecar.stop()).await.unwrap().unwrap();
        assert_eq!((ended.code, ended.force), (Some(0), None));
    }
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespace_or_port_that_is_not_to_be_had_is_an_error_of_the_launch() {
    let _alone = alone().await;
    let world = World::start().await;
    let launcher = launcher().await;
    let with = |listen| world.config(1).with(&json!({ "listen": listen })).pretty();
    let missing = with(json!({ "netns": "/run/netns/none" }));
    let error = launcher.launch(&missing, Stderr::Discard).await.unwrap_err();
    let LaunchError::Network { path, .. } = error else { panic!("{error:?}") };
    assert_eq!(path, Path::new("/run/netns/none"));

    if let Ok(job) = Namespace::new() {
        let taken = job.run(|| std::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = taken.local_addr().unwrap().port();
        let taken = with(json!({ "netns": job.path(), "port": port }));
        let error = launcher.launch(&taken, Stderr::Discard).await.unwrap_err();
        let LaunchError::Listen { at, .. } = error else { panic!("{error:?}") };
        assert_eq!(at.port(), port);
    }
    assert_no_children().await;
    world.finish().await;
}
