//! Measures the operator beside a bare client that makes the same calls.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod fill;
mod floor;
mod subject;
mod usage;
mod world;

use subject::Who;
use world::World;

#[derive(Parser)]
#[command(name = "moneygo-bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Be the bare client
    #[command(hide = true)]
    Floor(floor::Options),
    /// Fill, and print what it took
    Fill {
        #[arg(long, default_value_t = 1000)]
        objects: usize,
        #[arg(long)]
        operator: Option<PathBuf>,
        #[arg(long, default_value_t = 64)]
        concurrency: usize,
        #[arg(long)]
        probe: bool,
        /// Stay
        #[arg(long, default_value_t = 0)]
        hold: u64,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Arguments::parse().command {
        Command::Floor(options) => floor::run(options).await,
        Command::Fill { objects, operator, concurrency, probe, hold } => {
            let world = World::start().await?;
            let started = std::time::Instant::now();
            world.populate(0..objects).await?;
            eprintln!("populated in {:?}", started.elapsed());
            let who = operator.as_ref().map_or(Who::Floor(concurrency), |program| Who::open(program, concurrency));
            let (subject, filling) = fill::fill(&world, &who, objects, probe).await?;
            println!(
                "{} {:.1}/s reads {:.2} writes {:.2}",
                serde_json::to_string_pretty(&filling)?,
                filling.rate(),
                filling.each(&["get"]),
                filling.each(&["create", "update", "patch"])
            );
            tokio::time::sleep(std::time::Duration::from_secs(hold)).await;
            let usage = subject.usage()?;
            println!("resident {} KiB", usage.resident / 1024);
            subject.stop().await?;
            world.plane.shutdown().await
        }
    }
}
