//! What asks a command to end before it is done.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit code of what was interrupted: 128 and the number of SIGINT, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// SIGINT, SIGTERM and SIGHUP, which from here on end nothing by themselves.
pub struct Signals([Signal; 3]);

impl Signals {
    /// One listener for all of a command: a signal between two would be lost.
    pub fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    /// Waits for one of them.
    pub async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
