//! The Internet checksum (RFC 1071) of headers and, where no device finishes it, of payload.

use super::Pair;

/// Adds 16-bit big-endian words; an odd last byte counts as the high half of a word.
pub fn sum(mut acc: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        acc += u64::from(u32::from_be_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    acc + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum to 16 bits; not complemented.
pub fn fold(mut acc: u64) -> u16 {
    while acc > 0xffff {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    acc as u16
}

/// The sum of a pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn pseudo_header(pair: Pair, proto: u8, len: u32) -> u64 {
    let acc = match pair {
        Pair::V4(src, dst) => sum(sum(0, &src.octets()), &dst.octets()),
        Pair::V6(src, dst) => sum(sum(0, &src.octets()), &dst.octets()),
    };
    acc + u64::from(proto) + u64::from(len >> 16) + u64::from(len & 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_rfc_1071() {
        let mut seed = 7u32;
        for len in 0..300 {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 24) as u8
                })
                .collect();
            let mut ours = fold(sum(0, &bytes));
            let mut theirs = rfc_1071(&bytes);
            // 0 and 0xffff are the same number in one's complement.
            if ours == 0xffff {
                ours = 0;
            }
            if theirs == 0xffff {
                theirs = 0;
            }
            assert_eq!(ours, theirs, "length {len}");
        }
    }

    fn rfc_1071(bytes: &[u8]) -> u16 {
        // RFC 1071 section 4.1, word by word.
        let mut acc = 0u32;
        for pair in bytes.chunks(2) {
            acc += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while acc > 0xffff {
            acc = (acc & 0xffff) + (acc >> 16);
        }
        acc as u16
    }
}
