use borealis_base::{ErrorKind, ObjectId, SeededEntropy};
use borealis_keys::{DataKey, DataKeys};
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::Error;

const NAME: &str = "lineages/x/packs/00/y";

fn keys(seed: u64) -> DataKeys {
    DataKeys::new(DataKey::random(&SeededEntropy::new(seed)))
}

fn sealed(keys: &DataKeys, id: u64, contents: &[&[u8]]) -> SealedObject {
    let id = ObjectId::random(&SeededEntropy::new(id));
    let mut builder = ObjectBuilder::new(ObjectKind::Pack, id, Some(keys.current()));
    builder.clear(b"clear".to_vec());
    for content in contents {
        builder.push_frame(3, Compression::Zstd(1), content);
    }
    builder.seal()
}

/// Opens everything there is to open.
fn read_all(keys: &DataKeys, bytes: Bytes) -> crate::Result<Vec<Bytes>> {
    let view = ObjectView::parse(NAME, bytes)?;
    (0..view.head().frames().len() as u32)
        .map(|number| view.frame(keys, number))
        .collect()
}

#[test]
fn an_object_opens_to_what_was_sealed() {
    let keys = keys(1);
    let long = vec![7; 100_000];
    let object = sealed(&keys, 1, &[b"one", &long, b""]);
    assert!(
        object.bytes.len() < 1_000,
        "a frame that shrinks is compressed"
    );
    let view = ObjectView::parse(NAME, object.bytes.clone()).unwrap();
    assert_eq!(view.head().clear().as_ref(), b"clear");
    assert_eq!(view.head().digest(), object.head_digest);
    assert_eq!(view.head().frames()[1].plain_len, 100_000);
    let frames = read_all(&keys, object.bytes).unwrap();
    assert_eq!(
        frames,
        [Bytes::from_static(b"one"), long.into(), Bytes::new()]
    );
}

#[test]
fn every_flipped_bit_is_damage_that_names_the_object() {
    let keys = keys(1);
    let object = sealed(&keys, 1, &[b"first frame", b"second frame"]);
    for bit in 0..object.bytes.len() * 8 {
        let mut bytes = object.bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = read_all(&keys, bytes.into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "bit {bit}: {error}");
        assert!(error.to_string().contains(NAME), "{error}");
    }
}

#[test]
fn every_truncation_is_damage() {
    let keys = keys(1);
    let object = sealed(&keys, 1, &[b"first frame", b"second frame"]);
    for length in 0..object.bytes.len() {
        let error = read_all(&keys, object.bytes.slice(..length)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "length {length}: {error}");
    }
    let mut longer = object.bytes.to_vec();
    longer.push(0);
    assert!(read_all(&keys, longer.into()).is_err());
}

/// Recomputes both checksums, as someone with write access to the store would.
fn with_checksums(mut bytes: Vec<u8>) -> Bytes {
    let head_len = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), &bytes[24..24 + head_len]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    let end = bytes.len() - TRAILER_BYTES;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    bytes.into()
}

#[test]
fn a_changed_head_with_correct_checksums_fails_authentication() {
    let keys = keys(1);
    let object = sealed(&keys, 1, &[b"content"]);
    let mut bytes = object.bytes.to_vec();
    let at = bytes
        .windows(5)
        .position(|window| window == b"clear")
        .unwrap();
    bytes[at] = b'C';
    let error = read_all(&keys, with_checksums(bytes)).unwrap_err();
    assert!(
        error.to_string().contains("fails authentication"),
        "{error}"
    );
}

#[test]
fn swapped_frames_of_one_object_fail_authentication() {
    let keys = keys(1);
    let object = sealed(&keys, 1, &[b"aaaa", b"bbbb"]);
    let view = ObjectView::parse(NAME, object.bytes.clone()).unwrap();
    let (a, b) = (view.head().frames()[0], view.head().frames()[1]);
    let mut bytes = object.bytes.to_vec();
    let (a, b, len) = (a.offset as usize, b.offset as usize, a.stored_len as usize);
    bytes.copy_within(b..b + len, a);
    bytes[b..b + len].copy_from_slice(&object.bytes[a..a + len]);
    let error = read_all(&keys, with_checksums(bytes)).unwrap_err();
    assert!(
        error.to_string().contains("frame 0 fails authentication"),
        "{error}"
    );
}

#[test]
fn a_frame_of_another_object_fails_authentication() {
    let keys = keys(1);
    let (one, two) = (sealed(&keys, 1, &[b"aaaa"]), sealed(&keys, 2, &[b"bbbb"]));
    let (head_one, head_two) = (
        ObjectHead::parse("one", &one.bytes).unwrap(),
        ObjectHead::parse("two", &two.bytes).unwrap(),
    );
    let range = head_two.frame_range(0..1).unwrap();
    let foreign = &two.bytes[range.start as usize..range.end as usize];
    assert!(head_two.open_frame(&keys, 0, foreign).is_ok());
    assert!(head_one.open_frame(&keys, 0, foreign).is_err());
}

#[test]
fn removing_the_seal_is_damage() {
    // Built by hand, since the builder refuses to.
    let mut builder = ObjectBuilder::new(ObjectKind::KeyRing, ObjectId([1; 16]), None::<DataKey>);
    builder.push_frame(0, Compression::None, b"forged");
    let mut bytes = builder.seal().bytes.to_vec();
    bytes[10] = ObjectKind::LedgerEntry.code() as u8;
    let error = read_all(&keys(1), with_checksums(bytes)).unwrap_err();
    assert!(
        error.to_string().contains("its seal has been removed"),
        "{error}"
    );
}

#[test]
fn a_newer_format_is_refused_and_is_not_damage() {
    let keys = keys(1);
    let object = sealed(&keys, 1, &[b"content"]);
    for (at, what) in [
        (8, "format version"),
        (11, "object kind"),
        (12, "feature bits"),
    ] {
        let mut bytes = object.bytes.to_vec();
        bytes[at] = 0x40;
        let error = read_all(&keys, with_checksums(bytes)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert!(error.to_string().contains(NAME), "{error}");
    }
}

#[test]
fn a_wrong_data_key_is_refused_and_is_not_damage() {
    let object = sealed(&keys(1), 1, &[b"content"]);
    let error = read_all(&keys(2), object.bytes).unwrap_err();
    assert!(matches!(error, Error::UnknownDataKey { .. }));
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[test]
fn a_frame_that_lies_about_its_length_allocates_nothing() {
    // One line of the index, 4 GiB plain, with a correct checksum.
    let mut builder = ObjectBuilder::new(ObjectKind::KeyRing, ObjectId([1; 16]), None::<DataKey>);
    builder.push_frame(0, Compression::Zstd(1), &[0; 4_000]);
    let bytes = builder.seal().bytes;
    let head_len = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    let mut head = <HeadMessage as prost::Message>::decode(&bytes[24..24 + head_len]).unwrap();
    head.frames[0].plain_len = u32::MAX;
    let head = prost::Message::encode_to_vec(&head);
    let mut forged = bytes[..24].to_vec();
    forged[16..20].copy_from_slice(&(head.len() as u32).to_le_bytes());
    forged.extend_from_slice(&head);
    forged.extend_from_slice(&bytes[24 + head_len..]);
    let error = ObjectView::parse(NAME, with_checksums(forged)).unwrap_err();
    assert!(error.to_string().contains("out of bounds"), "{error}");
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes: Vec<u8>, magic: bool) {
        let mut bytes = bytes;
        if magic && bytes.len() >= 32 {
            bytes[..8].copy_from_slice(&MAGIC);
            let head_len = (bytes.len() - 32) as u32;
            bytes[16..20].copy_from_slice(&head_len.to_le_bytes());
            bytes[8..16].copy_from_slice(&[1, 0, 2, 0, 0, 0, 0, 0]);
            let _ = read_all(&keys(1), with_checksums(bytes));
        } else {
            prop_assert!(read_all(&keys(1), bytes.into()).is_err());
        }
    }

    #[test]
    fn any_contents_open_to_themselves(contents: Vec<Vec<u8>>) {
        let keys = keys(1);
        let slices: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        let object = sealed(&keys, 1, &slices);
        let mut opened = read_all(&keys, object.bytes).unwrap();
        opened.truncate(contents.len()); // an object without frames gets an empty one
        prop_assert_eq!(opened, contents);
    }
}
