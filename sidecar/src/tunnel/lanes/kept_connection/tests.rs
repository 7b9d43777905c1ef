use std::{future::pending, net::SocketAddr};

use tokio::time::{sleep, timeout};

use super::*;
use crate::tunnel::{
    lanes::{LaneObserver, LanePool},
    target,
    testing::{Dialling, FirstWords, PathFault, World},
};

/// A pool whose only lane keeps a connection to a target that begins like this.
struct Keeping {
    world: World,
    pool: Arc<LanePool>,
}

impl Keeping {
    async fn new(words: FirstWords) -> Self {
        let world = World::default();
        let config = world.lane_config("");
        let observer: LaneObserver = Arc::new(|_| ());
        let lane = Arc::new(Lane::open(&config, &observer).await.unwrap());
        let pool = Arc::new(LanePool::new(Arc::clone(&config)));
        pool.add_first(&lane);
        let mut speaking = world.lane_config("");
        Arc::get_mut(&mut speaking).unwrap().target.port = words.port();
        let requested = Instant::now();
        let channel = target::connect(&lane, &speaking, LIMIT).await.unwrap();
        pool.keep(lane, channel, requested);
        let expiring = Arc::clone(&pool);
        let expire = async move { expiring.expire_kept_connection().await };
        config.shutdown.spawn(expire);
        Self { world, pool }
    }

    /// Whether a client gets the kept connection that speaks at once, or never.
    async fn is_handed_over(&self, client_speaks: bool) -> bool {
        let speaks = async move {
            if !client_speaks {
                pending::<()>().await;
            }
        };
        let taken = timeout(LIMIT, self.pool.take_kept(speaks)).await.unwrap();
        taken.is_some()
    }

    async fn opens_a_fresh_one(&self) {
        let fresh = timeout(LIMIT, self.pool.open(ORIGINATOR, LIMIT, pending())).await.unwrap();
        assert!(fresh.is_ok(), "{fresh:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn client_gets_the_kept_connection_only_where_it_is_as_good_as_a_fresh_one() {
    for (words, age_ms, client_speaks, expected) in [
        (FirstWords::None, 0, true, true),
        (FirstWords::None, 400, true, true),
        (FirstWords::None, 600, true, false),
        (FirstWords::None, 0, false, false),
        (FirstWords::Greeting, 0, false, true),
        (FirstWords::Greeting, 900, false, true),
        (FirstWords::Greeting, 1_100, false, false),
        (FirstWords::TooManyConnections, 0, false, false),
        (FirstWords::TooManyConnections, 100, false, false),
        (FirstWords::TooManyConnections, 100, true, false),
        (FirstWords::GreetingThenTimeout, 100, false, false),
        (FirstWords::GreetingThenEof, 100, false, false),
        (FirstWords::Close, 0, false, false),
        (FirstWords::Close, 100, true, false),
    ] {
        let keeping = Keeping::new(words).await;
        sleep(Duration::from_millis(age_ms)).await;
        let case = format!("{words:?} after {age_ms} ms, client speaks: {client_speaks}");
        assert_eq!(keeping.is_handed_over(client_speaks).await, expected, "{case}");
        assert!(!keeping.is_handed_over(true).await, "{case}: handed over twice");
        keeping.opens_a_fresh_one().await;
    }
}

#[tokio::test(start_paused = true)]
async fn kept_connection_whose_path_is_broken_is_not_handed_over() {
    let keeping = Keeping::new(FirstWords::Greeting).await;
    keeping.world.set_dialling(Dialling::Refused);
    keeping.world.set_path("s-1", PathFault::Cut);
    sleep(Duration::from_millis(100)).await;
    assert!(!keeping.is_handed_over(true).await);
    keeping.world.set_dialling(Dialling::Connects);
    keeping.opens_a_fresh_one().await;
}

#[test]
fn greeting_is_one_whole_packet_of_version_10() {
    let greeting = FirstWords::Greeting.bytes();
    assert!(is_greeting(&greeting));
    assert!(!is_greeting(&greeting[..greeting.len() - 1]), "not all of it has arrived");
    assert!(!is_greeting(&[&*greeting, &[0]].concat()), "something follows it");
    assert!(!is_greeting(&FirstWords::TooManyConnections.bytes()));
    assert!(!is_greeting(b"SSH-2.0-OpenSSH_10.0\r\n"));
    assert!(!is_greeting(b"E"));
}

const ORIGINATOR: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 50_000);

/// Virtual time, for what must come.
const LIMIT: Duration = Duration::from_mins(1);
