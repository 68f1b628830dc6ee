//! Values that are kept by the thousand and looked at now and then: small between two looks.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What packed values have in common: the names of their fields, and the texts that most of them hold.
const DICTIONARY: &[u8] = include_bytes!("dictionary.txt");

/// A value as compressed JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed(Box<[u8]>);

impl Packed {
    /// `None` for what JSON cannot hold: a map with keys other than strings.
    #[must_use]
    pub fn new(value: &impl Serialize) -> Option<Self> {
        let json = serde_json::to_vec(value).ok()?;
        Some(Self(lz4_flex::block::compress_prepend_size_with_dict(&json, DICTIONARY).into()))
    }

    /// `None` where it was packed as another type.
    #[must_use]
    pub fn value<T: DeserializeOwned>(&self) -> Option<T> {
        let json = lz4_flex::block::decompress_size_prepended_with_dict(&self.0, DICTIONARY).ok()?;
        serde_json::from_slice(&json).ok()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
