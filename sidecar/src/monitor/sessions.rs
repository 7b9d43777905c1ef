//! The sessions that were started for the worker, and what it may do with them.
//!
//! A compromised worker reaches the instance and port of the config, through sessions that the monitor has started for
//! it, and nothing else.

use http::Uri;

use crate::{
    channel::websocket::{StreamEndpoint, expected_host, resolve},
    session::{Resumed, Started},
};

/// Every session of this job.
#[derive(Debug)]
pub(super) struct SessionRegistry {
    sessions: Vec<Entry>,
    /// StartSession calls in flight.
    starting: usize,
    endpoint: StreamEndpoint,
}

#[derive(Debug)]
struct Entry {
    id: String,
    /// Whether it may have to be terminated.
    open: bool,
    /// The URIs of its data channel: the last two, since one may be in use while a newer one arrives.
    channels: Vec<Uri>,
}

impl SessionRegistry {
    /// `endpoint`: where data channels may lead at all.
    pub(super) fn new(endpoint: StreamEndpoint) -> Self {
        Self { sessions: Vec::new(), starting: 0, endpoint }
    }

    /// Reserves a place for one more session; false at the limit. End it with
    /// [`start_finished`](Self::start_finished).
    pub(super) fn try_reserve(&mut self) -> bool {
        let open = self.sessions.iter().filter(|entry| entry.open).count();
        let free = open + self.starting < MAX_OPEN;
        self.starting += usize::from(free);
        free
    }

    /// Ends a reservation, with the session if one was started.
    pub(super) fn start_finished(&mut self, started: Option<&Started>) {
        self.starting = self.starting.saturating_sub(1);
        let Some(started) = started else { return };
        if self.sessions.len() >= MAX_KNOWN
            && let Some(oldest) = self.sessions.iter().position(|entry| !entry.open)
        {
            self.sessions.remove(oldest);
        }
        let channels = self.resolved(&started.stream_url).into_iter().collect();
        self.sessions.push(Entry { id: started.session_id.clone(), open: true, channels });
    }

    /// Adds the URI at which a resumed session continues.
    pub(super) fn resumed(&mut self, id: &str, resumed: &Resumed) {
        let url = resumed.stream_url.as_deref().and_then(|url| self.resolved(url));
        if let (Some(url), Some(entry)) = (url, self.find(id)) {
            if entry.channels.len() > 1 {
                entry.channels.remove(0);
            }
            entry.channels.push(url);
        }
    }

    /// Whether this session was started for the worker.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.sessions.iter().any(|entry| entry.id == id)
    }

    /// Whether `uri` is the expected host of data channels: the worker may connect to it before there is a session.
    pub(super) fn is_stream_host(&self, uri: &Uri) -> bool {
        expected_host(&self.endpoint).is_some_and(|expected| expected == *uri)
    }

    /// Whether `uri` is, byte for byte, that of a data channel of an open session.
    pub(super) fn allows_channel(&self, uri: &Uri) -> bool {
        let open = self.sessions.iter().filter(|entry| entry.open);
        open.flat_map(|entry| &entry.channels).any(|channel| channel == uri)
    }

    /// Records that the session needs no TerminateSession any more.
    pub(super) fn mark_ended(&mut self, id: &str) {
        if let Some(entry) = self.find(id) {
            entry.open = false;
        }
    }

    /// The ids of the sessions that may have to be terminated.
    pub(super) fn open(&self) -> Vec<String> {
        self.sessions.iter().filter(|entry| entry.open).map(|entry| entry.id.clone()).collect()
    }

    /// Whether a StartSession call is in flight.
    pub(super) fn is_starting(&self) -> bool {
        self.starting > 0
    }

    pub(super) fn endpoint(&self) -> &StreamEndpoint {
        &self.endpoint
    }

    /// The URI of a `StreamUrl`, if it is allowed. The worker refuses others too, with the reason.
    fn resolved(&self, url: &str) -> Option<Uri> {
        resolve(url, &self.endpoint).ok()
    }

    fn find(&mut self, id: &str) -> Option<&mut Entry> {
        self.sessions.iter_mut().find(|entry| entry.id == id)
    }
}

/// Most sessions that are open or being started: sixteen lanes, each with its replacement, and some that are being
/// ended.
const MAX_OPEN: usize = 48;

/// Most sessions in the registry. Ended ones are kept for late messages about them; the oldest of these is
/// removed first.
const MAX_KNOWN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{channel::websocket::testing, session::Token};

    fn registry() -> SessionRegistry {
        let endpoint = testing::endpoint(None, false);
        SessionRegistry::new(StreamEndpoint { region: "eu-west-1".to_owned(), ..endpoint })
    }

    fn url(query: &str) -> String {
        format!("wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s?{query}")
    }

    fn start(registry: &mut SessionRegistry, id: &str, stream_url: String) {
        assert!(registry.try_reserve());
        let token = Token::from(String::new());
        registry.start_finished(Some(&Started { session_id: id.to_owned(), stream_url, token }));
    }

    #[test]
    fn only_data_channels_of_open_sessions_are_allowed() {
        let mut registry = registry();
        let uri = |text: String| text.parse::<Uri>().unwrap();
        assert!(!registry.allows_channel(&uri(url("cell=1"))));
        start(&mut registry, "own", url("cell=1"));
        assert!(registry.contains("own") && !registry.contains("another"));
        assert!(registry.allows_channel(&uri(url("cell=1"))));
        for other in [url("cell=2"), url("cell=1&x"), url("cell=1").replace("ssmmessages.", "")] {
            assert!(!registry.allows_channel(&uri(other.clone())), "{other}");
        }
        let resumed = |query| Resumed { stream_url: Some(url(query)), token: None };
        registry.resumed("another", &resumed("cell=3"));
        assert!(!registry.allows_channel(&uri(url("cell=3"))));
        registry.resumed("own", &resumed("cell=2"));
        assert!(
            registry.allows_channel(&uri(url("cell=1")))
                && registry.allows_channel(&uri(url("cell=2")))
        );
        registry.resumed("own", &resumed("cell=3"));
        assert!(
            !registry.allows_channel(&uri(url("cell=1")))
                && registry.allows_channel(&uri(url("cell=3")))
        );
        registry.mark_ended("own");
        assert!(!registry.allows_channel(&uri(url("cell=3"))), "it is over");
        assert!(registry.contains("own") && registry.open().is_empty());
    }

    #[test]
    fn host_of_the_data_channels_is_allowed_before_there_is_one() {
        let registry = registry();
        for (uri, expected) in [
            ("wss://ssmmessages.eu-west-1.amazonaws.com/", true),
            ("wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s", false),
            ("wss://ssmmessages.us-east-1.amazonaws.com/", false),
            ("wss://ssm.eu-west-1.amazonaws.com/", false),
            ("ws://127.0.0.1:22/", false),
        ] {
            assert_eq!(registry.is_stream_host(&uri.parse().unwrap()), expected, "{uri}");
        }
    }

    #[test]
    fn data_channels_at_other_hosts_are_not_allowed_even_when_the_service_names_them() {
        let mut registry = registry();
        let elsewhere = "wss://evil.example/v1/data-channel/s";
        start(&mut registry, "own", elsewhere.to_owned());
        assert!(!registry.allows_channel(&elsewhere.parse().unwrap()));
        assert_eq!(registry.open(), ["own"], "it is to be terminated all the same");
    }

    #[test]
    fn sessions_at_once_are_bounded_and_ended_ones_are_forgotten() {
        let mut registry = registry();
        for number in 0..MAX_OPEN {
            start(&mut registry, &number.to_string(), url(""));
        }
        assert!(!registry.try_reserve(), "no more at once");
        registry.mark_ended("0");
        assert!(registry.try_reserve() && registry.is_starting());
        registry.start_finished(None);
        assert!(!registry.is_starting());
        for number in 0..MAX_KNOWN {
            let id = format!("later {number}");
            start(&mut registry, &id, url(""));
            registry.mark_ended(&id);
        }
        assert_eq!(registry.sessions.len(), MAX_KNOWN);
        assert_eq!(registry.open().len(), MAX_OPEN - 1);
    }
}
