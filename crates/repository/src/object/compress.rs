//! Compressing frames, with a compressor that each thread keeps.

use std::cell::RefCell;

use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, compress_bound};

use super::Compression;

/// The buffer that a thread keeps; a larger one is given back. Frames of pages and of log have little
/// more than 1 MiB.
const KEPT_BUFFER_BYTES: usize = 2 << 20;

/// [`Compression::ZstdLowCpu`]: level 1 looks back 512 KiB through a hash table of 64 KiB. These look
/// back 128 KiB through one of 16 KiB, so that both stay in a core's own caches.
const LOW_CPU: [CParameter; 4] = [
    CParameter::CompressionLevel(1),
    CParameter::WindowLog(17),
    CParameter::HashLog(12),
    CParameter::MinMatch(7),
];

struct Kept {
    compression: Compression,
    compressor: Compressor<'static>,
    buffer: Vec<u8>,
}

thread_local! {
    /// Made anew for each frame, a compressor costs tables of up to a megabyte, and its buffer fresh
    /// memory.
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

fn compressor(compression: Compression) -> Compressor<'static> {
    let level = match compression {
        Compression::Zstd(level) => level,
        Compression::ZstdLowCpu | Compression::None => 1,
    };
    let mut compressor = Compressor::new(level).expect("zstd takes every level");
    if compression == Compression::ZstdLowCpu {
        for parameter in LOW_CPU {
            compressor
                .set_parameter(parameter)
                .expect("zstd takes these parameters");
        }
    }
    compressor
}

/// One zstd frame of `plain`, which may be longer than `plain`.
pub(super) fn compress(compression: Compression, plain: &[u8]) -> Vec<u8> {
    KEPT.with_borrow_mut(|kept| {
        let kept = match kept {
            Some(kept) if kept.compression == compression => kept,
            kept => kept.insert(Kept {
                compression,
                compressor: compressor(compression),
                buffer: Vec::new(),
            }),
        };
        kept.buffer.clear();
        kept.buffer.reserve(compress_bound(plain.len()));
        kept.compressor
            .compress_to_buffer(plain, &mut kept.buffer)
            .expect("zstd compresses from memory to memory");
        let compressed = kept.buffer.clone();
        if kept.buffer.capacity() > KEPT_BUFFER_BYTES {
            kept.buffer = Vec::new();
        }
        compressed
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some_compression() -> impl Strategy<Value = Compression> {
        prop_oneof![
            Just(Compression::ZstdLowCpu),
            (-2..4).prop_map(Compression::Zstd)
        ]
    }

    /// Text that repeats, short or longer than the window.
    fn some_plain() -> impl Strategy<Value = Vec<u8>> {
        (prop::collection::vec(any::<u8>(), 0..64), 0..6000_usize)
            .prop_map(|(text, times)| text.repeat(times))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_kept_compressor_compresses_like_a_new_one(
            frames in prop::collection::vec((some_compression(), some_plain()), 1..6)
        ) {
            for (compression, plain) in frames {
                let compressed = compress(compression, &plain);
                prop_assert_eq!(&compressor(compression).compress(&plain).unwrap(), &compressed);
                prop_assert_eq!(zstd::bulk::decompress(&compressed, plain.len()).unwrap(), plain);
            }
        }
    }
}
