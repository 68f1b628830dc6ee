//! What may be in a request, the source Secret and the target Secret, and nowhere else.

use std::collections::BTreeSet;

use k8s_openapi::ByteString;
use serde_json::{Value, json};

/// So many bytes of a secret are looked for, its beginning: a part of it must not slip out, either. A shorter one might be a
/// word of the operator's own, and is not looked for.
const BEGINNING: usize = 16;

/// The beginnings of secrets, as they are and in base64.
pub struct Canaries(BTreeSet<String>);

impl Canaries {
    /// Those of client secrets and tokens.
    pub fn of<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let long = secrets.into_iter().filter(|secret| secret.len() >= BEGINNING);
        let beginnings: BTreeSet<_> = long.map(|secret| &secret[..secret.floor_char_boundary(BEGINNING)]).collect();
        let forms = |beginning: &str| {
            let encoded = (0..3).map(|offset| base64_within(beginning, offset));
            encoded.chain([beginning.to_owned()]).collect::<Vec<_>>()
        };
        Self(beginnings.into_iter().flat_map(forms).collect())
    }

    /// The line of the text that has one.
    pub fn find<'a>(&self, text: &'a str) -> Option<&'a str> {
        let at = self.0.iter().find_map(|canary| text.find(canary))?;
        let from = text[..at].rfind('\n').map_or(0, |end| end + 1);
        text[from..].lines().next()
    }
}

/// As a Secret has it.
pub fn base64(bytes: &[u8]) -> String {
    let Value::String(encoded) = json!(ByteString(bytes.to_vec())) else { panic!("bytes are text in JSON") };
    encoded
}

/// What base64 makes of the text wherever in a longer one it stands, `offset` bytes after a multiple of three.
pub fn base64_within(text: &str, offset: usize) -> String {
    let encoded = base64(&[&vec![0; offset][..], text.as_bytes()].concat());
    let (first, last) = ((offset * 8).div_ceil(6), (offset + text.len()) * 8 / 6);
    encoded[first..last].to_owned()
}
