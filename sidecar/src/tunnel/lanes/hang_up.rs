//! An sshd that hangs up before it has accepted the login: what that means.
//!
//! The agent passes on what sshd has sent, and ends the session once sshd has closed its connection. So it is the
//! session that ends, within a tenth of a second (seen with the real agent), though sshd has given an answer. An sshd
//! that is not there shows as silence.

use std::{fmt, time::Duration};

use runner_protocol::ErrorCode;

use crate::runtime::failure::ToFailure;

/// sshd hung up before it had accepted the login.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", Shown(self))]
pub(crate) struct HangUp {
    pub(crate) stage: Stage,
    /// What sshd said for people.
    pub(crate) words: Option<String>,
    /// Since sshd was connected to.
    pub(crate) after: Duration,
    /// `bastion.ssh_port`.
    pub(crate) port: u16,
    /// `bastion.ssh_user`.
    pub(crate) user: String,
}

/// How far sshd had come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    BeforeIdentification,
    KeyExchange,
    /// Login requests are answered.
    Login,
}

/// What sshd means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Meaning {
    /// It takes no connection now, or none from this source.
    Full,
    /// The key was right, and the account may not be used.
    AccountRefused,
    /// Logins are disabled for the moment, as by `/etc/nologin`.
    ClosedForNow,
    /// The login took longer than it allows.
    TooSlow,
    /// Unknown.
    Wordless,
}

/// Whether another attempt at the start makes sense.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Retry {
    Never,
    /// The cause may pass, but hardly does.
    Few,
    WhileThereIsTime,
}

impl HangUp {
    /// Its words, if they are those of another protocol: then it is not sshd.
    pub(super) fn foreign_words(&self) -> Option<&str> {
        let words = self.words.as_deref().filter(|_| self.stage == Stage::BeforeIdentification)?;
        // A wrapper in front of sshd may say anything readable.
        let is_binary = words.contains('\u{fffd}') || words.contains("\\u{");
        (is_binary || words.starts_with("HTTP/")).then_some(words)
    }

    pub(super) fn retry(&self) -> Retry {
        match self.meaning() {
            Meaning::Full | Meaning::ClosedForNow | Meaning::TooSlow => Retry::WhileThereIsTime,
            Meaning::Wordless => Retry::Few,
            Meaning::AccountRefused => Retry::Never,
        }
    }

    fn meaning(&self) -> Meaning {
        match (self.stage, &self.words) {
            (Stage::BeforeIdentification, _) => Meaning::Full,
            (Stage::Login, Some(words)) if is_about_the_account(words) => Meaning::AccountRefused,
            (Stage::Login, _) if self.after >= SLOW_LOGIN => Meaning::TooSlow,
            (Stage::Login, Some(_)) => Meaning::ClosedForNow,
            (Stage::Login, None) | (Stage::KeyExchange, _) => Meaning::Wordless,
        }
    }
}

impl ToFailure for HangUp {
    fn code(&self) -> ErrorCode {
        match (self.meaning(), self.stage) {
            (Meaning::AccountRefused, _) | (Meaning::Wordless, Stage::Login) => {
                ErrorCode::SshAuthRejected
            }
            (Meaning::Full | Meaning::ClosedForNow | Meaning::TooSlow | Meaning::Wordless, _) => {
                ErrorCode::SshBusy
            }
        }
    }

    fn hint(&self) -> String {
        let Self { port, user, .. } = self;
        match (self.meaning(), self.stage) {
            (Meaning::Full, _) => format!(
                "through SSM all logins come from 127.0.0.1: let MaxStartups, PerSourceMaxStartups and \
                 PerSourcePenalties of the bastion's sshd, and /etc/hosts.deny, leave room for that address \
                 (`PerSourcePenaltyExemptList 127.0.0.1`); if another server listens on port {port}, correct \
                 `bastion.ssh_port`"
            ),
            (Meaning::AccountRefused, _) => format!(
                "make the account `{user}` of the bastion usable again (`chage -l {user}` and `passwd -S {user}` show \
                 its state; for its expiry `chage -E -1 {user}`), or set `bastion.ssh_user` to another one: the key was \
                 accepted, PAM refuses the account"
            ),
            (Meaning::ClosedForNow, _) => {
                "try again when the bastion has started, or end its maintenance: while /etc/nologin or /run/nologin is \
                 there, sshd lets only root in; if it is not, sshd's log says which module of PAM refuses the account"
                    .to_owned()
            }
            (Meaning::TooSlow, _) => {
                "raise sshd's LoginGraceTime on the bastion, or make its login faster: an AuthorizedKeysCommand or a \
                 directory service that is slow uses that time up"
                    .to_owned()
            }
            (Meaning::Wordless, Stage::Login) => format!(
                "see sshd's log on the bastion: it names the module of PAM that refuses the account `{user}` without a \
                 word (pam_access, pam_sss), or why sshd's own process has ended"
            ),
            (Meaning::Wordless, _) => {
                "see sshd's log on the bastion for why its process has ended: a lack of memory or of processes, an update \
                 without a restart, a LoginGraceTime of few seconds"
                    .to_owned()
            }
        }
    }
}

struct Shown<'a>(&'a HangUp);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HangUp { stage, words, after, port, user } = self.0;
        match stage {
            Stage::BeforeIdentification => {
                write!(
                    formatter,
                    "the server on port {port} of the bastion hung up before its identification"
                )?;
            }
            Stage::KeyExchange => formatter.write_str("sshd hung up during the key exchange")?,
            Stage::Login => write!(formatter, "sshd hung up during the login of `{user}`")?,
        }
        if *after >= SLOW_LOGIN {
            write!(formatter, ", after {} s", after.as_secs())?;
        }
        match words {
            Some(words) => write!(formatter, ": `{}`", cut(words)),
            None => formatter.write_str(", without a word"),
        }
    }
}

/// Whether the agent ended the session because sshd had closed its connection: without a reason, or with the bare result
/// of its work. Others than sshd give reasons: the agent (seen with 3.3), the idle time-out, the maximum duration.
pub(super) fn is_end_of_server(reason: &str) -> bool {
    matches!(reason.trim(), "" | "Success" | "Failed")
}

/// Whether sshd's words are about this account, and not about a moment: `pam_unix` ("Your account has expired; please
/// contact your system administrator"), `pam_faillock` ("The account is locked due to 3 failed logins").
fn is_about_the_account(words: &str) -> bool {
    let words = words.to_lowercase();
    words.contains("account")
        && ["expired", "locked", "disabled"].iter().any(|word| words.contains(word))
}

fn cut(words: &str) -> String {
    let mut shown: String = words.chars().take(WORDS).collect();
    if shown.len() < words.len() {
        shown.push('…');
    }
    shown
}

/// A login that takes this long ends because of that, rather than by a decision. `LoginGraceTime` is 120 s by default;
/// hardening guides set 30 to 60.
const SLOW_LOGIN: Duration = Duration::from_secs(3);

/// Most characters of sshd's words in a message.
const WORDS: usize = 300;
