//! The handshake over a faulty path.

use std::time::Duration;

use serde_json::json;

use super::{agent::Behaviour, link::Faults, pair::Pair};
use crate::{Event, MessageType, PayloadType, ProtocolError, message::PAYLOAD_OFFSET};

#[test]
fn only_the_response_and_acknowledgements_are_sent_before_the_handshake_is_complete() {
    let mut pair = Pair::new();
    assert_eq!((pair.client.write(b"too early"), pair.client.writable()), (0, 0));
    assert!(!pair.client.terminate(), "the agent would discard the flag");
    pair.unwritten = b"SSH-2.0-x\r\n".to_vec();
    pair.run_until(|pair| !pair.agent.written.is_empty());

    let sent: Vec<_> = pair.messages_sent(MessageType::InputStreamData).collect();
    let kinds: Vec<_> = sent.iter().map(|message| message.payload_type).collect();
    assert_eq!(kinds, [PayloadType::HandshakeResponse.to_wire(), PayloadType::Output.to_wire()]);
    assert_eq!(pair.agent.discarded, 0);
    assert_eq!(pair.agent.written, b"SSH-2.0-x\r\n");
    assert_eq!(pair.agent.acknowledged, [0, 1]);
    let (agent_version, customer_message) = ("3.3.0.0".into(), String::new());
    assert_eq!(pair.events, [Event::Open { agent_version, customer_message }]);
}

#[test]
fn the_opening_message_keeps_its_client_and_renews_its_request() {
    let mut pair = Pair::new();
    let mut opening = || {
        let text = pair.client.opening("to\"ken");
        let order: Vec<_> = text.split('"').skip(1).step_by(2).take(9).map(str::to_owned).collect();
        assert_eq!([&*order[0], &*order[2]], ["MessageSchemaVersion", "RequestId"]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let (first, second) = (opening(), opening());
    assert_eq!(first["TokenValue"], "to\"ken");
    assert_eq!(first["MessageSchemaVersion"], "1.0");
    assert_eq!(first["ClientVersion"], "1.2.764.0");
    assert_eq!(first["ClientId"], second["ClientId"]);
    assert_ne!(first["RequestId"], second["RequestId"]);
    assert_eq!(first.as_object().unwrap().len(), 5);
}

#[test]
fn repeated_handshake_messages_are_acknowledged_again_and_get_one_response() {
    let faults = Faults { duplication: 1_000, ..Faults::default() };
    let mut pair = Pair::open(Behaviour::default(), faults);
    pair.run_for(Duration::from_secs(1));
    assert_eq!(pair.agent.responses.len(), 1);
    // Each of the two messages came twice, and each acknowledgement was duplicated by the path.
    assert_eq!(pair.agent.acknowledged.len(), 8);
    assert_eq!(pair.client.statistics().duplicates, 2);
    assert_eq!(pair.events.len(), 1);
}

#[test]
fn a_lost_response_is_sent_again_unchanged() {
    let mut pair = Pair::new();
    // Position 0 is the acknowledgement of the request.
    pair.up.lose([1]);
    pair.run_until(|pair| pair.client.is_open());
    let responses: Vec<_> = pair.sent.iter().filter(|frame| frame[4] == b'i').collect();
    assert_eq!(responses.len(), 2);
    assert_eq!(responses[0], responses[1]);
    assert_eq!(responses[0].as_ptr(), responses[1].as_ptr(), "retained without a copy");
    assert_eq!(pair.now - pair.start, Duration::from_secs(1), "the initial timeout of RFC 6298");
}

#[test]
fn messages_that_overtake_the_handshake_are_buffered() {
    let mut pair = Pair::new();
    // The response arrives; the completion is lost while data comes.
    pair.down.lose([1]);
    pair.agent.offer(b"SSH-2.0-OpenSSH\r\n");
    pair.run_until(|pair| pair.client.statistics().out_of_order > 0);
    assert!(pair.read.is_empty() && !pair.client.is_open());
    assert!(pair.agent.acknowledged.contains(&2), "early messages are acknowledged at once");
    pair.run_until(|pair| pair.client.is_open());
    assert_eq!(pair.read, b"SSH-2.0-OpenSSH\r\n");
}

#[test]
fn unsupported_actions_get_status_three_and_then_an_error() {
    let session = json!({ "ActionType": "SessionType",
        "ActionParameters": { "SessionType": "Port", "Properties": {} } });
    let shell = json!({ "ActionType": "SessionType",
        "ActionParameters": { "SessionType": "Standard_Stream", "Properties": null } });
    let kms = json!({ "ActionType": "KMSEncryption", "ActionParameters": { "KMSKeyId": "key" } });
    let later = json!({ "ActionType": "Later" });
    let cases = [
        (json!([session, kms]), "action `KMSEncryption`", [1, 3]),
        (json!([later, session]), "action `Later`", [3, 1]),
        (json!([shell, session]), "session type `Standard_Stream`", [3, 1]),
    ];
    for (actions, what, statuses) in cases {
        let behaviour = Behaviour { actions, ..Behaviour::default() };
        let mut pair = Pair::with(crate::Config::default(), behaviour, Faults::default(), 1);
        pair.run_until(|pair| pair.error.is_some());
        let error = ProtocolError::Unsupported { what: what.into() };
        assert_eq!(pair.error, Some(error.clone()));
        assert_eq!(pair.events, [Event::Failed(error)]);
        let response: serde_json::Value = serde_json::from_slice(&pair.agent.responses[0]).unwrap();
        for (index, status) in statuses.into_iter().enumerate() {
            assert_eq!(response["ProcessedClientActions"][index]["ActionStatus"], status, "{what}");
        }
        assert_eq!(pair.client.poll_timeout(), None);
        assert!(!pair.client.is_open() && !pair.client.terminate());
    }
}

#[test]
fn stream_bytes_without_a_handshake_are_a_failure() {
    let mut pair = Pair::new();
    // The request becomes Output, which an agent without a handshake would send first.
    let mut frame = pair.agent.poll_transmit().unwrap().to_vec();
    frame[115] = 1;
    assert!(frame.len() > PAYLOAD_OFFSET);
    let error = pair.client.handle_message(pair.now, frame.into()).unwrap_err();
    assert!(matches!(error, ProtocolError::Unexpected { message: "stream bytes", .. }), "{error}");
    let frame = pair.client.poll_transmit(pair.now);
    assert!(frame.is_some(), "a stored message is acknowledged all the same");
    assert_eq!(pair.client.poll_transmit(pair.now), None);
}
