//! A session's data channel: the WebSocket, and the only loop around `data-channel`.

pub mod driver;
pub mod websocket;
