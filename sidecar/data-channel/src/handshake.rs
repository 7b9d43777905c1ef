//! The handshake: request, response, completion (docs/ssm-protocol.md, section 6).
//!
//! ```text
//! AwaitingRequest ──request──▶ AwaitingComplete ──complete──▶ Open
//!        └──unsupported request──▶ Refused
//! ```
//!
//! Messages arrive here in the order of their numbers and once each.

use crate::{
    error::ProtocolError,
    payload::{self, PayloadType, RequestedAction},
};

/// State of the handshake.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Handshake {
    /// No request has been received.
    AwaitingRequest,
    /// The response has been queued.
    AwaitingComplete { agent_version: String },
    /// The response refuses an action. `what` describes the first one.
    Refused { what: String },
    /// Complete: the stream flows.
    Open,
}

/// What the channel has to do after a transition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Send this handshake response.
    Respond(Vec<u8>),
    /// Report that the stream flows.
    Opened { agent_version: String, customer_message: String },
}

impl Handshake {
    /// Returns the state after the message, and what to do.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::Unexpected`] if the message is not valid in this state,
    /// [`ProtocolError::Unsupported`] for an encryption challenge, [`ProtocolError::Handshake`] if the payload is
    /// malformed.
    pub(crate) fn on_message(
        self,
        payload_type: PayloadType,
        payload: &[u8],
        client_version: &str,
    ) -> Result<(Self, Step), ProtocolError> {
        match (self, payload_type) {
            (Self::AwaitingRequest, PayloadType::HandshakeRequest) => {
                Self::on_request(payload, client_version)
            }
            (Self::AwaitingComplete { agent_version }, PayloadType::HandshakeComplete) => {
                let customer_message =
                    payload::parse_handshake_complete(payload).map_err(ProtocolError::Handshake)?;
                Ok((Self::Open, Step::Opened { agent_version, customer_message }))
            }
            (_, PayloadType::EncryptionChallengeRequest) => {
                Err(ProtocolError::Unsupported { what: "an encryption challenge".to_owned() })
            }
            (state, payload_type) => Err(ProtocolError::Unexpected {
                message: name(payload_type),
                state: state.description(),
            }),
        }
    }

    fn on_request(payload: &[u8], client_version: &str) -> Result<(Self, Step), ProtocolError> {
        let request =
            payload::parse_handshake_request(payload).map_err(ProtocolError::Handshake)?;
        let refusal = |action: &RequestedAction| match action {
            RequestedAction::SessionType { session_type, .. } if session_type != "Port" => {
                Some(format!("session type {}", quote(session_type)))
            }
            // Both sides must agree about multiplexing, or the stream is garbage (docs/ssm-protocol.md,
            // section 19).
            RequestedAction::SessionType { forwarding: Some(forwarding), .. }
                if forwarding == "LocalPortForwarding" =>
            {
                Some("multiplexed port forwarding".to_owned())
            }
            RequestedAction::SessionType { .. } => None,
            RequestedAction::Other(name) => Some(format!("action {}", quote(name))),
        };
        let actions: Vec<_> =
            request.actions.into_iter().map(|action| (refusal(&action), action)).collect();

        let mut refusals = actions.iter().filter_map(|(refusal, _)| refusal.as_deref());
        let no_session_type = !actions
            .iter()
            .any(|(_, action)| matches!(action, RequestedAction::SessionType { .. }));
        let what = refusals
            .next()
            .map(str::to_owned)
            .or_else(|| no_session_type.then(|| "a session without a type".to_owned()));
        let results: Vec<_> = actions
            .into_iter()
            .map(|(refusal, action)| (action, refusal.map(|what| format!("Unsupported {what}"))))
            .collect();
        let response = Step::Respond(payload::handshake_response(client_version, &results));
        let next = match what {
            Some(what) => Self::Refused { what },
            None => {
                Self::AwaitingComplete { agent_version: payload::excerpt(&request.agent_version) }
            }
        };
        Ok((next, response))
    }

    const fn description(&self) -> &'static str {
        match self {
            Self::AwaitingRequest => "awaiting the handshake request",
            Self::AwaitingComplete { .. } => "awaiting the completion of the handshake",
            Self::Refused { .. } => "refusing the handshake",
            Self::Open => "the stream is open",
        }
    }
}

fn quote(name: &str) -> String {
    let name: String = name.chars().take(100).collect();
    format!("`{}`", name.escape_debug())
}

const fn name(payload_type: PayloadType) -> &'static str {
    match payload_type {
        PayloadType::Output => "stream bytes",
        PayloadType::Error => "error text",
        PayloadType::Size => "terminal size",
        PayloadType::Parameter => "parameters",
        PayloadType::HandshakeRequest => "handshake request",
        PayloadType::HandshakeResponse => "handshake response",
        PayloadType::HandshakeComplete => "handshake completion",
        PayloadType::EncryptionChallengeRequest => "encryption challenge",
        PayloadType::EncryptionChallengeResponse => "encryption challenge response",
        PayloadType::Flag => "flag",
        PayloadType::StdErr => "standard error",
        PayloadType::ExitCode => "exit code",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "1.2.764.0";

    fn request(actions: &str) -> Result<(Handshake, Step), ProtocolError> {
        let json = format!(r#"{{"AgentVersion":"3.3.0.0","RequestedClientActions":[{actions}]}}"#);
        let kind = PayloadType::HandshakeRequest;
        Handshake::AwaitingRequest.on_message(kind, json.as_bytes(), VERSION)
    }

    fn session(session_type: &str, properties: &str) -> String {
        format!(
            r#"{{"ActionType":"SessionType","ActionParameters":{{"SessionType":"{session_type}","Properties":{properties}}}}}"#
        )
    }

    fn response(step: Step) -> String {
        match step {
            Step::Respond(response) => String::from_utf8(response).unwrap(),
            Step::Opened { .. } => panic!("opened"),
        }
    }

    #[test]
    fn a_plain_port_session_opens() {
        let (state, step) = request(&session("Port", r#"{"portNumber":"22"}"#)).unwrap();
        assert_eq!(state, Handshake::AwaitingComplete { agent_version: "3.3.0.0".into() });
        assert_eq!(
            response(step),
            r#"{"ClientVersion":"1.2.764.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}"#
        );
        let complete = br#"{"HandshakeTimeToComplete":1,"CustomerMessage":"hello"}"#;
        let (state, step) =
            state.on_message(PayloadType::HandshakeComplete, complete, VERSION).unwrap();
        assert_eq!(state, Handshake::Open);
        let (agent_version, customer_message) = ("3.3.0.0".into(), "hello".into());
        assert_eq!(step, Step::Opened { agent_version, customer_message });
    }

    #[test]
    fn unsupported_actions_get_status_three_and_are_named() {
        let port = session("Port", "{}");
        let kms = r#"{"ActionType":"KMSEncryption","ActionParameters":{"KMSKeyId":"k"}}"#;
        let cases = [
            (session("Standard_Stream", "null"), "session type `Standard_Stream`", "[3]"),
            (
                session("Port", r#"{"type":"LocalPortForwarding"}"#),
                "multiplexed port forwarding",
                "[3]",
            ),
            (format!("{port},{kms}"), "action `KMSEncryption`", "[1, 3]"),
            (format!("{kms},{port}"), "action `KMSEncryption`", "[3, 1]"),
            (r#"{"ActionType":"Later"}"#.to_owned(), "action `Later`", "[3]"),
            (String::new(), "a session without a type", "[]"),
        ];
        for (actions, what, statuses) in cases {
            let (state, step) = request(&actions).unwrap();
            assert_eq!(state, Handshake::Refused { what: what.into() }, "{actions}");
            let response: serde_json::Value = serde_json::from_str(&response(step)).unwrap();
            let sent: Vec<_> = response["ProcessedClientActions"]
                .as_array()
                .unwrap()
                .iter()
                .map(|action| action["ActionStatus"].as_i64().unwrap())
                .collect();
            assert_eq!(format!("{sent:?}"), statuses, "{actions}");
        }
    }

    #[test]
    fn messages_not_valid_in_a_state_are_errors() {
        let waiting = Handshake::AwaitingComplete { agent_version: String::new() };
        let cases = [
            (Handshake::AwaitingRequest, PayloadType::HandshakeComplete),
            (Handshake::AwaitingRequest, PayloadType::Output),
            (waiting.clone(), PayloadType::HandshakeRequest),
            (waiting, PayloadType::Output),
            (Handshake::Open, PayloadType::HandshakeRequest),
            (Handshake::Open, PayloadType::HandshakeComplete),
        ];
        for (state, kind) in cases {
            let outcome = state.clone().on_message(kind, b"{}", VERSION);
            assert!(
                matches!(outcome, Err(ProtocolError::Unexpected { .. })),
                "{kind:?} in {state:?}: {outcome:?}"
            );
        }
    }
}
