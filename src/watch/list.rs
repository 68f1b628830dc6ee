//! A list of objects that is taken in as it comes: of an answer of any length, no more than one object is there at a time.

use std::io::ErrorKind;
use std::marker::PhantomData;

use futures::io::{AsyncBufRead, AsyncBufReadExt as _};
use kube::core::ListMeta;
use serde::de::{DeserializeOwned, IgnoredAny};

/// Where in the answer the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    /// Between the fields of the list itself.
    Fields,
    Items,
    End,
}

/// A list in JSON. Its fields may come in any order: the API server puts `metadata` first for its own kinds, and last for those of a CRD.
pub(super) struct List<R, K> {
    source: R,
    place: Place,
    /// What has come and is not taken in yet.
    buffer: Vec<u8>,
    taken: usize,
    metadata: ListMeta,
    has_items: bool,
    items: PhantomData<fn() -> K>,
}

impl<R: AsyncBufRead + Unpin, K: DeserializeOwned> List<R, K> {
    pub(super) fn new(source: R) -> Self {
        let (place, buffer, metadata) = (Place::Start, Vec::new(), ListMeta::default());
        Self { source, place, buffer, taken: 0, metadata, has_items: false, items: PhantomData }
    }

    /// The list's own metadata: whole once there is no more object.
    pub(super) fn into_metadata(self) -> ListMeta {
        self.metadata
    }

    /// The next object. `None` where all have come.
    ///
    /// # Errors
    /// Where the answer breaks off, or is no list.
    pub(super) async fn next(&mut self) -> kube::Result<Option<K>> {
        loop {
            match (self.place, self.peek().await?) {
                (Place::End, _) => return Ok(None),
                (Place::Start, b'{') | (Place::Items, b']') => self.enter(Place::Fields),
                (Place::Fields, b'}') if !self.has_items => {
                    return Err(kube::Error::SerdeError(serde::de::Error::missing_field("items")));
                }
                (Place::Fields, b'}') => {
                    self.enter(Place::End);
                    // A connection whose answer was read to its end serves again.
                    while matches!(self.read().await, Ok(true)) {}
                }
                (Place::Fields | Place::Items, b',') => self.taken += 1,
                (Place::Items, _) => return self.value().await.map(Some),
                (Place::Start | Place::Fields, _) => self.field().await?,
            }
        }
    }

    fn enter(&mut self, place: Place) {
        self.taken += 1;
        self.place = place;
    }

    async fn field(&mut self) -> kube::Result<()> {
        let name: String = self.value().await?;
        if self.peek().await? == b':' {
            self.taken += 1;
        }
        self.has_items |= name == "items";
        match name.as_str() {
            "metadata" => self.metadata = self.value().await?,
            "items" if self.peek().await? == b'[' => self.enter(Place::Items),
            // `items` may be null.
            _ => drop(self.value::<IgnoredAny>().await?),
        }
        Ok(())
    }

    /// The next byte that is no white space. Nothing is asked for once the list is whole.
    async fn peek(&mut self) -> kube::Result<u8> {
        loop {
            if self.place == Place::End {
                return Ok(0);
            }
            let coming = self.buffer.get(self.taken..).unwrap_or_default();
            if let Some(blanks) = coming.iter().position(|byte| !byte.is_ascii_whitespace()) {
                self.taken += blanks;
                return Ok(self.buffer.get(self.taken).copied().unwrap_or_default());
            }
            self.taken = self.buffer.len();
            if !self.read().await? {
                return Err(broken_off());
            }
        }
    }

    async fn value<T: DeserializeOwned>(&mut self) -> kube::Result<T> {
        let mut wrong_at = None;
        loop {
            let coming = self.buffer.get(self.taken..).unwrap_or_default();
            let mut values = serde_json::Deserializer::from_slice(coming).into_iter();
            match values.next() {
                Some(Ok(value)) => {
                    self.taken += values.byte_offset();
                    return Ok(value);
                }
                Some(Err(error)) if !error.is_eof() => {
                    // A number that is not whole yet is wrong, but not for long.
                    let place = Some((error.line(), error.column()));
                    if std::mem::replace(&mut wrong_at, place) == place {
                        return Err(kube::Error::SerdeError(error));
                    }
                }
                Some(Err(_)) | None => {}
            }
            // A value that is long is not read again for each piece of it.
            let wanted = coming.len() + coming.len() / 2 + 1;
            let mut has_grown = false;
            while self.buffer.len() - self.taken < wanted && self.read().await? {
                has_grown = true;
            }
            if !has_grown {
                return Err(broken_off());
            }
        }
    }

    /// Takes over what has come next. Returns whether anything has.
    async fn read(&mut self) -> kube::Result<bool> {
        self.buffer.drain(..std::mem::take(&mut self.taken));
        let piece = self.source.fill_buf().await.map_err(kube::Error::ReadEvents)?;
        let length = piece.len();
        self.buffer.extend_from_slice(piece);
        self.source.consume_unpin(length);
        Ok(length > 0)
    }
}

fn broken_off() -> kube::Error {
    kube::Error::ReadEvents(ErrorKind::UnexpectedEof.into())
}
