//! A panic's payload may quote a secret: only its place is told. In a binary of its own, for the hook is the process's.

use std::io::Write;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().map_err(|_| std::io::Error::other("poisoned"))?.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_tells_its_place_and_nothing_else() {
    moneygo_operator::telemetry::hide_panic_payloads();
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let panicked = tracing::subscriber::with_default(subscriber, || std::panic::catch_unwind(|| panic!("canary")));
    assert!(panicked.is_err());
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("tests/panics.rs:") && !log.contains("canary"), "{log}");
}
