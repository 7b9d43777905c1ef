//! The sessions that the worker has started, and what it may do with them.
//!
//! The worker is believed only as far as its own sessions go: whoever takes it over reaches the instance and
//! port of the document, by the sessions that the monitor has started for it, and nothing else.

use http::Uri;

use crate::{
    channel::websocket::{self, Settings},
    session::{Resumed, Started},
};

/// Every session of this process.
#[derive(Debug)]
pub(super) struct Wards {
    sessions: Vec<Ward>,
    /// Calls that may still bring one.
    starting: usize,
    settings: Settings,
}

#[derive(Debug)]
struct Ward {
    id: String,
    /// Whether there may be something to end.
    open: bool,
    /// Where its data channel is opened: the last two, since one may be under way while a newer one comes.
    channels: Vec<Uri>,
}

impl Wards {
    /// `settings`: where data channels may lead at all.
    pub(super) fn new(settings: Settings) -> Self {
        Self { sessions: Vec::new(), starting: 0, settings }
    }

    /// Whether one more may be started; then it counts as starting.
    pub(super) fn begin(&mut self) -> bool {
        let open = self.sessions.iter().filter(|ward| ward.open).count();
        let free = open + self.starting < MAX_OPEN;
        self.starting += usize::from(free);
        free
    }

    /// Ends what [`Self::begin`] began.
    pub(super) fn began(&mut self, started: Option<&Started>) {
        self.starting = self.starting.saturating_sub(1);
        let Some(started) = started else { return };
        if self.sessions.len() >= MAX_KNOWN
            && let Some(oldest) = self.sessions.iter().position(|ward| !ward.open)
        {
            self.sessions.remove(oldest);
        }
        let channels = self.resolved(&started.stream_url).into_iter().collect();
        self.sessions.push(Ward { id: started.session_id.clone(), open: true, channels });
    }

    /// Notes where a resumed session goes on.
    pub(super) fn resumed(&mut self, id: &str, resumed: &Resumed) {
        let url = resumed.stream_url.as_deref().and_then(|url| self.resolved(url));
        if let (Some(url), Some(ward)) = (url, self.find(id)) {
            if ward.channels.len() > 1 {
                ward.channels.remove(0);
            }
            ward.channels.push(url);
        }
    }

    /// Whether the session was started here.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.sessions.iter().any(|ward| ward.id == id)
    }

    /// Whether `uri` is the host that data channels are expected at, without any of them: it may be reached
    /// before a session is there.
    pub(super) fn expects(&self, uri: &Uri) -> bool {
        websocket::expected(&self.settings).is_some_and(|expected| expected == *uri)
    }

    /// Whether a data channel of an open session is opened at `uri`, byte for byte.
    pub(super) fn leads_to(&self, uri: &Uri) -> bool {
        let open = self.sessions.iter().filter(|ward| ward.open);
        open.flat_map(|ward| &ward.channels).any(|channel| channel == uri)
    }

    /// Notes that there is nothing left to end.
    pub(super) fn close(&mut self, id: &str) {
        if let Some(ward) = self.find(id) {
            ward.open = false;
        }
    }

    /// Those that are to be ended yet.
    pub(super) fn open(&self) -> Vec<String> {
        self.sessions.iter().filter(|ward| ward.open).map(|ward| ward.id.clone()).collect()
    }

    /// Whether a call may still bring one.
    pub(super) fn is_starting(&self) -> bool {
        self.starting > 0
    }

    /// How data channels are reached.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where a `StreamUrl` leads; one that leads elsewhere is refused by the worker too, with the reason.
    fn resolved(&self, url: &str) -> Option<Uri> {
        websocket::resolve(url, &self.settings).ok()
    }

    fn find(&mut self, id: &str) -> Option<&mut Ward> {
        self.sessions.iter_mut().find(|ward| ward.id == id)
    }
}

/// Sixteen lanes, each with its successor, and some whose end is under way.
const MAX_OPEN: usize = 48;

/// Remembered, so that a late word about one that is over is understood.
const MAX_KNOWN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::{proxy::Proxy, tls::Trust},
        session::Token,
    };

    fn wards() -> Wards {
        Wards::new(Settings::new("eu-west-1", Trust::from_pem(b""), Proxy::default()))
    }

    fn url(query: &str) -> String {
        format!("wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s?{query}")
    }

    fn start(wards: &mut Wards, id: &str, stream_url: String) {
        assert!(wards.begin());
        let token = Token::from(String::new());
        wards.began(Some(&Started { session_id: id.to_owned(), stream_url, token }));
    }

    #[test]
    fn only_data_channels_of_open_sessions_are_reached() {
        let mut wards = wards();
        let uri = |text: String| text.parse::<Uri>().unwrap();
        assert!(!wards.leads_to(&uri(url("cell=1"))));
        start(&mut wards, "own", url("cell=1"));
        assert!(wards.knows("own") && !wards.knows("another"));
        assert!(wards.leads_to(&uri(url("cell=1"))));
        for other in [url("cell=2"), url("cell=1&x"), url("cell=1").replace("ssmmessages.", "")] {
            assert!(!wards.leads_to(&uri(other.clone())), "{other}");
        }
        let resumed = |query| Resumed { stream_url: Some(url(query)), token: None };
        wards.resumed("another", &resumed("cell=3"));
        assert!(!wards.leads_to(&uri(url("cell=3"))));
        wards.resumed("own", &resumed("cell=2"));
        assert!(wards.leads_to(&uri(url("cell=1"))) && wards.leads_to(&uri(url("cell=2"))));
        wards.resumed("own", &resumed("cell=3"));
        assert!(!wards.leads_to(&uri(url("cell=1"))) && wards.leads_to(&uri(url("cell=3"))));
        wards.close("own");
        assert!(!wards.leads_to(&uri(url("cell=3"))), "it is over");
        assert!(wards.knows("own") && wards.open().is_empty());
    }

    #[test]
    fn host_of_the_data_channels_is_reached_before_there_is_one() {
        let wards = wards();
        for (uri, expected) in [
            ("wss://ssmmessages.eu-west-1.amazonaws.com/", true),
            ("wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s", false),
            ("wss://ssmmessages.us-east-1.amazonaws.com/", false),
            ("wss://ssm.eu-west-1.amazonaws.com/", false),
            ("ws://127.0.0.1:22/", false),
        ] {
            assert_eq!(wards.expects(&uri.parse().unwrap()), expected, "{uri}");
        }
    }

    #[test]
    fn channels_elsewhere_are_not_reached_even_when_the_service_names_them() {
        let mut wards = wards();
        let elsewhere = "wss://evil.example/v1/data-channel/s";
        start(&mut wards, "own", elsewhere.to_owned());
        assert!(!wards.leads_to(&elsewhere.parse().unwrap()));
        assert_eq!(wards.open(), ["own"], "it is to be ended all the same");
    }

    #[test]
    fn sessions_at_once_are_bounded_and_the_closed_ones_forgotten() {
        let mut wards = wards();
        for number in 0..MAX_OPEN {
            start(&mut wards, &number.to_string(), url(""));
        }
        assert!(!wards.begin(), "no more at once");
        wards.close("0");
        assert!(wards.begin() && wards.is_starting());
        wards.began(None);
        assert!(!wards.is_starting());
        for number in 0..MAX_KNOWN {
            let id = format!("later {number}");
            start(&mut wards, &id, url(""));
            wards.close(&id);
        }
        assert_eq!(wards.sessions.len(), MAX_KNOWN);
        assert_eq!(wards.open().len(), MAX_OPEN - 1);
    }
}
