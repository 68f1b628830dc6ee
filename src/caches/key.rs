//! The names of objects.

use std::fmt;
use std::sync::Arc;

/// Names a namespaced object. Copies share what they point to: each table that holds one has two words of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(
    /// The namespace, a slash, which neither may hold, and the name.
    Arc<str>,
);

impl ObjectKey {
    /// Names an object.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self([namespace, "/", name].concat().into())
    }

    /// The name of an object that was read.
    #[must_use]
    pub fn of(object: &impl kube::Resource) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.parts().0
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or_default()
    }

    /// Another object of the same namespace.
    pub(super) fn beside(&self, name: &str) -> Self {
        if self.name() == name { self.clone() } else { Self::new(self.namespace(), name) }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
