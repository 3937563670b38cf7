//! Packs and manifests as text.

use borealis_base::Timestamp;
use borealis_keys::DataKeys;
use serde_json::{Value, json};

use super::digests;
use super::frame::PageFrame;
use super::manifest::{Blob, PageFile};
use super::message::{self, FRAME_MAP_PART};
use super::pack::{FRAME_BLOBS, FRAME_DIGESTS, FRAME_PAGES};
use crate::Result;
use crate::inspect::{Inspector, hex, opaque};
use crate::object::{ObjectKind, ObjectView};
use crate::plan::ObjectRef;

/// Shows which pages and blobs stand in which frame of a pack.
pub struct PackInspector;

impl Inspector for PackInspector {
    fn kind(&self) -> ObjectKind {
        ObjectKind::Pack
    }

    fn content(&self, object: &ObjectView, keys: Option<&DataKeys>) -> Result<Value> {
        let Some(keys) = keys else {
            return Ok(Value::Null);
        };
        let mut frames = Vec::new();
        for (number, frame) in (0_u32..).zip(object.head().frames()) {
            let plain = object.frame(keys, number)?;
            frames.push(match frame.kind {
                FRAME_PAGES => {
                    let pages = PageFrame::decode(&plain)
                        .map_err(|error| object.head().damaged(error.to_string()))?;
                    json!({
                        "number": number,
                        "page_file": pages.file(),
                        "page_size": pages.page_size(),
                        "pages": ranges(pages.numbers()),
                    })
                }
                FRAME_DIGESTS => {
                    let digests = digests::decode(&plain)
                        .map_err(|error| object.head().damaged(error.to_string()))?;
                    let frames: Vec<u32> = digests.iter().map(|frame| frame.frame).collect();
                    json!({"number": number, "digests_of_frames": ranges(&frames)})
                }
                FRAME_BLOBS => json!({"number": number, "blob_bytes": plain.len()}),
                kind => json!({"number": number, "unknown_kind": kind}),
            });
        }
        Ok(json!({ "frames": frames }))
    }
}

/// Ascending numbers, neighbours joined: `0-7 9`.
fn ranges(numbers: &[u32]) -> String {
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match joined.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => joined.push((number, number)),
        }
    }
    let shown: Vec<String> = (joined.into_iter())
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    shown.join(" ")
}

/// Shows the tables of a manifest. The runs of its page map are counted.
pub struct ManifestInspector;

impl Inspector for ManifestInspector {
    fn kind(&self) -> ObjectKind {
        ObjectKind::Manifest
    }

    fn content(&self, object: &ObjectView, keys: Option<&DataKeys>) -> Result<Value> {
        let Some(keys) = keys else {
            return Ok(Value::Null);
        };
        let head = object.head();
        let mut frames = Vec::new();
        for (number, frame) in (0_u32..).zip(head.frames()) {
            if frame.kind != FRAME_MAP_PART {
                frames.push((frame.kind, object.frame(keys, number)?));
            }
        }
        // Its own lineage is known only to the name it is stored under; nothing shown depends on it.
        let own = ObjectRef {
            lineage: borealis_base::LineageId::default(),
            object: head.id(),
            len: head.object_len(),
            head_digest: head.digest(),
        };
        let body =
            message::decode(&frames, own).map_err(|error| head.damaged(error.to_string()))?;
        let (info, files) = (&body.info, &body.files);
        Ok(json!({
            "branch": info.branch,
            "start": info.start,
            "end": info.end,
            "started_at": info.started_at,
            "ended_at": info.ended_at,
            "rule_set": info.rule_set,
            "partial": body.missing_pages.map(|pages| json!({"missing_pages": pages})),
            "engine": std::str::from_utf8(&info.engine).ok()
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_else(|| opaque(&info.engine)),
            "page_files": files.page_files.values().map(show_page_file).collect::<Vec<_>>(),
            "blobs": files.blobs.iter().map(show_blob).collect::<Vec<_>>(),
            "directories": files.directories.iter()
                .map(|directory| json!({"path": directory.name, "mode": mode(directory.mode)}))
                .collect::<Vec<_>>(),
            "links": files.links.iter()
                .map(|link| json!({"path": link.name, "target": link.target}))
                .collect::<Vec<_>>(),
            "packs": body.packs.iter().map(|(number, pack)| json!({
                "number": number,
                "object_id": pack.object.object,
                "stored_len": pack.object.len,
                "frames": pack.frames,
                "live_pages": pack.live_pages,
            })).collect::<Vec<_>>(),
            "map_parts": body.parts.iter().map(|part| json!({
                "first_page_file": part.first.file,
                "first_page": part.first.page,
                "runs": part.runs,
                "pages": part.pages,
                "manifest": part.handle.object.object,
                "frame": part.handle.frame,
            })).collect::<Vec<_>>(),
        }))
    }
}

fn mode(bits: u32) -> String {
    format!("{bits:04o}")
}

fn show_page_file(file: &PageFile) -> Value {
    json!({
        "number": file.number,
        "path": file.name,
        "page_size": file.page_size,
        "pages": file.length,
        "mode": mode(file.mode),
    })
}

fn show_blob(blob: &Blob) -> Value {
    let modified: Timestamp = blob.modified;
    json!({
        "path": blob.name,
        "len": blob.len,
        "mode": mode(blob.mode),
        "modified": modified,
        "sha256": hex(&blob.sha256),
    })
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn neighbouring_pages_are_joined() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[0, 1, 2, 9, 11, 12]), "0-2 9 11-12");
        assert_eq!(ranges(&[u32::MAX]), "4294967295");
    }
}
