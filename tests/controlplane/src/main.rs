//! Starts a control plane, says how to reach it, and keeps it until Ctrl-C.

use std::time::Instant;

use anyhow::Result;
use moneygo_controlplane::ControlPlane;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<()> {
    let started = Instant::now();
    let control_plane = ControlPlane::start().await?;
    // Whoever reads the line below may interrupt at once.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (kubectl, kubeconfig) = (control_plane.kubectl(), control_plane.kubeconfig());
    eprintln!("Ready after {:.1} s; Ctrl-C ends it.", started.elapsed().as_secs_f32());
    println!("{} --kubeconfig {}", kubectl.display(), kubeconfig.display());
    interrupt.recv().await;
    control_plane.shutdown().await
}
