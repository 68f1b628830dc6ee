//! What many states have in common.

use std::fmt::{self, Debug, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A value that is kept once for all the states that have it, and is compared by a digest of its `Debug`: the operator's types
/// have no `Hash`. It is replaced, never changed.
pub struct Shared<T> {
    digest: u64,
    value: Arc<T>,
}

impl<T: Debug> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self { digest: digest_of(&value), value: Arc::new(value) }
    }
}

struct Digester(DefaultHasher);

impl Write for Digester {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

fn digest_of(value: &impl Debug) -> u64 {
    let mut digester = Digester(DefaultHasher::new());
    // A digester takes whatever it is given.
    let _ = write!(digester, "{value:?}");
    digester.0.finish()
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { digest: self.digest, value: Arc::clone(&self.value) }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl<T> Eq for Shared<T> {}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest);
    }
}

impl<T: Debug> Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}
