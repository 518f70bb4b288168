//! Threads that come behind all others, at the disk and at the processor (layer 4).

use std::io;

/// From linux/ioprio.h.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_IDLE: libc::c_int = 3;
const IOPRIO_CLASS_SHIFT: u32 = 13;
/// Gets a share of the processor even so: what never gets one never ends.
const NICEST: libc::c_int = 19;

/// Has the calling thread, and those that it starts, read only where nobody else does, as far as the disk's scheduler knows
/// such a thing, and compute where others leave time.
///
/// # Errors
/// As ioprio_set(2) and setpriority(2).
pub fn make_idle() -> io::Result<()> {
    let priority = IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT;
    // SAFETY: numbers only; 0 is the calling thread.
    let set = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: numbers only; 0 is the calling thread.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICEST) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_and_those_that_it_starts_become_idle() {
        let look = || {
            // SAFETY: numbers only.
            let io = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) };
            // SAFETY: numbers only.
            let cpu = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
            (io >> IOPRIO_CLASS_SHIFT, cpu)
        };
        let idle = (i64::from(IOPRIO_CLASS_IDLE), NICEST);
        let seen = std::thread::spawn(move || {
            make_idle().unwrap();
            (look(), std::thread::spawn(look).join().unwrap())
        });
        assert_eq!(seen.join().unwrap(), (idle, idle));
        assert_ne!(look(), idle);
    }
}
