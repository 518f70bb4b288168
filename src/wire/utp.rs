//! uTP (BEP 29), as far as turning it down goes. Layer 1.
//!
//! The UDP port of the listening port is ours. A peer that tries uTP there and hears nothing waits for many seconds
//! before it tries TCP; one that is refused tries TCP at once.

/// Bytes of a uTP header without extensions.
pub const HEADER_BYTES: usize = 20;
/// Version 1 and the type of the packet in the first byte.
const SYN: u8 = 0x41;
const RESET: u8 = 0x31;

/// The answer that refuses a connection: an `ST_RESET` to an `ST_SYN`, never longer than what asked for it. `None` for
/// anything else. `seq_nr` is of our choice.
pub fn refuse(datagram: &[u8], seq_nr: u16) -> Option<[u8; HEADER_BYTES]> {
    let header: &[u8; HEADER_BYTES] = datagram.first_chunk()?;
    if header[0] != SYN {
        return None;
    }
    let mut reset = [0; HEADER_BYTES];
    reset[0] = RESET;
    // The connection's id, and the number of the packet that is answered.
    reset[2..4].copy_from_slice(&header[2..4]);
    reset[16..18].copy_from_slice(&seq_nr.to_be_bytes());
    reset[18..20].copy_from_slice(&header[16..18]);
    Some(reset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_attempt_is_refused_and_nothing_else_is_answered() {
        let mut syn = [0; 30];
        syn[..4].copy_from_slice(&[SYN, 2, 0xcc, 0x47]);
        syn[16..18].copy_from_slice(&[0, 1]);
        let reset = refuse(&syn, 0x1234).unwrap();
        assert_eq!(reset[..4], [RESET, 0, 0xcc, 0x47]);
        assert_eq!(reset[16..], [0x12, 0x34, 0, 1]);
        assert_eq!(refuse(&syn[..19], 0), None);
        for other in [0x01, 0x11, 0x21, 0x31, 0x40, 0x42, 0x51, b'd'] {
            syn[0] = other;
            assert_eq!(refuse(&syn, 0), None, "{other:#x}");
        }
    }
}
