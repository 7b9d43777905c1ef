//! Signals for the command.

use std::{io, io::IsTerminal as _};

use nix::{
    sys::signal::Signal,
    unistd::{getpgrp, tcgetpgrp},
};
use tokio::{
    signal::unix::{self, SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};

/// Receives the signals that are passed on to the command.
#[derive(Debug)]
pub(super) struct Signals {
    next: mpsc::Receiver<Signal>,
    _listeners: JoinSet<()>,
}

impl Signals {
    /// Handles every signal in [`PASSED_ON`], so that none ends this process.
    pub(super) fn listen() -> io::Result<Self> {
        let (sender, next) = mpsc::channel(QUEUED);
        let mut listeners = JoinSet::new();
        for each in PASSED_ON {
            let arrived = signal(SignalKind::from_raw(each as i32))?;
            listeners.spawn(listen(arrived, each, sender.clone()));
        }
        Ok(Self { next, _listeners: listeners })
    }

    /// Returns the next signal. Cancel-safe.
    pub(super) async fn next(&mut self) -> Signal {
        match self.next.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}

async fn listen(mut arrived: unix::Signal, each: Signal, sender: mpsc::Sender<Signal>) {
    while arrived.recv().await.is_some() {
        if FROM_TERMINALS.contains(&each) && shares_a_terminal() {
            // The terminal has sent it to the whole foreground group, the command included.
            continue;
        }
        if sender.send(each).await.is_err() {
            return;
        }
    }
}

/// Whether this process and its command are in a terminal's foreground.
fn shares_a_terminal() -> bool {
    let stdin = io::stdin();
    stdin.is_terminal() && tcgetpgrp(&stdin).is_ok_and(|foreground| foreground == getpgrp())
}

const PASSED_ON: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Signals that a terminal sends at a key (Ctrl-C, Ctrl-\\).
const FROM_TERMINALS: [Signal; 2] = [Signal::SIGINT, Signal::SIGQUIT];

const QUEUED: usize = 16;
