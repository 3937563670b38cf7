//! Named objects out of the store, their heads kept.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use borealis_base::ObjectId;
use borealis_keys::DataKeys;
use bytes::Bytes;

use crate::catalog::Lineage;
use crate::object::{ObjectHead, ObjectKind, fetch_frames, fetch_head_with};
use crate::plan::ObjectRef;
use crate::store::Store;
use crate::{Error, Result, layout};

/// Heads kept at most; the head of a pack of full frames has about a kilobyte.
const HEADS_MAX: usize = 1_024;

/// Reads frames of packs and manifests that a reference names, and refuses any other object in
/// their place. Shared between threads.
pub struct Fetcher {
    store: Arc<dyn Store>,
    keys: Arc<DataKeys>,
    heads: Mutex<BTreeMap<ObjectId, Arc<ObjectHead>>>,
}

/// The name of the object of `kind` that `object` names.
pub fn object_name(kind: ObjectKind, object: &ObjectRef) -> String {
    match kind {
        ObjectKind::Manifest => layout::manifest(object.lineage, object.object),
        _ => layout::pack(object.lineage, object.object),
    }
}

/// Checks that `head` is that of the object that `object` names and not of another valid one.
pub(crate) fn check_identity(head: &ObjectHead, object: &ObjectRef) -> Result<()> {
    if head.id() != object.object || head.digest() != object.head_digest {
        return Err(head.damaged("it is another object than the one that is named"));
    }
    if head.object_len() != object.len {
        return Err(head.damaged(format!(
            "it has {} bytes, and {} are named",
            head.object_len(),
            object.len
        )));
    }
    Ok(())
}

impl Fetcher {
    /// A reader of `store` that opens with `keys`.
    pub fn new(store: Arc<dyn Store>, keys: Arc<DataKeys>) -> Self {
        Self {
            store,
            keys,
            heads: Mutex::default(),
        }
    }

    /// A reader of what `lineage` names.
    pub fn of(lineage: &Lineage) -> Self {
        Self::new(Arc::clone(lineage.store()), Arc::clone(lineage.keys()))
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The keys.
    pub fn keys(&self) -> &Arc<DataKeys> {
        &self.keys
    }

    /// The head of the object that `object` names, on behalf of `needed_by`.
    pub async fn head(
        &self,
        kind: ObjectKind,
        object: &ObjectRef,
        needed_by: &str,
    ) -> Result<Arc<ObjectHead>> {
        let known = self
            .heads
            .lock()
            .expect("no holder panics")
            .get(&object.object)
            .cloned();
        if let Some(head) = known {
            head.expect_kind(kind)?;
            check_identity(&head, object)?;
            return Ok(head);
        }
        let name = object_name(kind, object);
        let (head, _) = fetch_head_with(&*self.store, &self.keys, &name, kind)
            .await
            .map_err(|error| error.named_by(needed_by))?;
        check_identity(&head, object)?;
        let head = Arc::new(head);
        let mut heads = self.heads.lock().expect("no holder panics");
        if heads.len() >= HEADS_MAX {
            heads.clear();
        }
        heads.insert(object.object, Arc::clone(&head));
        Ok(head)
    }

    /// The stored bytes of neighbouring frames, with one ranged get.
    pub async fn stored_frames(&self, head: &ObjectHead, numbers: Range<u32>) -> Result<Bytes> {
        fetch_frames(&*self.store, head, &Bytes::new(), numbers).await
    }

    /// Fetches and opens one frame.
    pub async fn frame(&self, head: &Arc<ObjectHead>, number: u32) -> Result<Bytes> {
        let end = number
            .checked_add(1)
            .ok_or_else(|| head.damaged(format!("it has no frame {number}")))?;
        let stored = self.stored_frames(head, number..end).await?;
        let (head, keys) = (Arc::clone(head), Arc::clone(&self.keys));
        super::pack::blocking(move || head.open_frame(&keys, number, &stored)).await?
    }
}

/// Splits the stored bytes of neighbouring frames into those of each, and opens them in order.
pub(crate) fn open_each(
    head: &ObjectHead,
    keys: &DataKeys,
    numbers: Range<u32>,
    mut stored: Bytes,
    mut each: impl FnMut(u32, Bytes) -> Result<()>,
) -> Result<()> {
    for number in numbers {
        let len = head.frame(number)?.stored_len as usize;
        if len > stored.len() {
            return Err(Error::damaged(head.name(), "truncated within a range"));
        }
        let plain = head.open_frame(keys, number, &stored.split_to(len))?;
        each(number, plain)?;
    }
    Ok(())
}
