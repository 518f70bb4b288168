//! Programs that are started without a file of ours (layer 4).

use std::os::unix::process::CommandExt;
use std::process::Command;

/// The first descriptor behind stdin, stdout and stderr.
const FIRST_OTHER: libc::c_uint = 3;

/// Has the program start with stdin, stdout and stderr alone: what a service manager handed over, or a library opened,
/// does not reach it. Needs Linux 5.11; before that, only what is marked to be closed is.
pub fn close_inherited(command: &mut Command) {
    let close = || {
        let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
        // SAFETY: a system call without memory of ours. That descriptors are only marked leaves the one by which the
        // standard library tells of a failed start.
        unsafe { libc::close_range(FIRST_OTHER, libc::c_uint::MAX, flags) };
        Ok(())
    };
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(close) };
}
