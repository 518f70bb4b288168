//! Random bytes that nobody can guess, from the kernel (layer 4).

use std::io;

/// So many of them; at most 256, which the kernel gives at once.
///
/// # Errors
/// The kernel gives none: it is older than getrandom(2), or forbids it.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the pointer and the length are those of a slice that is ours for the time of the call.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => done += got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::random;

    #[test]
    fn no_two_are_the_same() {
        let (one, other) = (random::<28>().unwrap(), random::<28>().unwrap());
        assert_ne!(one, other);
    }
}
