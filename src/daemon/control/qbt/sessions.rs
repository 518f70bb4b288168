//! Who logged in: the values of the `SID` cookie. Layer 6.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use sha1::{Digest, Sha1};

use crate::uring::random::random;

/// Sessions at a time; when there are more, the one that was used longest ago ends. Programs that log in for each request
/// and never out do no harm to others.
const SESSIONS_MAX: usize = 64;
/// A session that was not used for this long has ended.
const IDLE_TIME: Duration = Duration::from_secs(3_600);
/// The cookie.
pub const COOKIE: &str = "SID";

/// Sessions by the digest of their secret: how long a look takes tells nothing of the secrets that there are.
#[derive(Debug, Default)]
pub struct Sessions(BTreeMap<[u8; 20], Instant>);

impl Sessions {
    /// Begins one and tells its secret, 192 random bits as text. What the client brought along is never taken for it.
    ///
    /// # Errors
    /// No randomness.
    pub fn begin(&mut self, now: Instant) -> io::Result<String> {
        self.0.retain(|_, used| !is_over(*used, now));
        while self.0.len() >= SESSIONS_MAX {
            let oldest = self.0.iter().min_by_key(|(_, used)| **used);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                break;
            };
            self.0.remove(&oldest);
        }
        let bytes = random::<24>()?;
        let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.insert(key(&secret), now);
        Ok(secret)
    }

    /// Whether it is the secret of a session; if so, the session was used now.
    pub fn is_known(&mut self, secret: &str, now: Instant) -> bool {
        match self.0.get_mut(&key(secret)) {
            Some(used) if !is_over(*used, now) => {
                *used = now;
                true
            }
            _ => false,
        }
    }

    /// Ends it.
    pub fn end(&mut self, secret: &str) {
        self.0.remove(&key(secret));
    }
}

fn is_over(used: Instant, now: Instant) -> bool {
    now.saturating_duration_since(used) >= IDLE_TIME
}

fn key(secret: &str) -> [u8; 20] {
    Sha1::digest(secret.as_bytes()).into()
}

/// The secrets in a `Cookie` header. Some clients send a whole `Set-Cookie` back.
pub fn secrets(cookies: &str) -> impl Iterator<Item = &str> {
    let pairs = cookies.split(';').filter_map(|pair| pair.split_once('='));
    let own = pairs.filter(|(name, _)| name.trim() == COOKIE);
    own.map(|(_, value)| value.trim()).take(SECRETS_MAX)
}

/// Cookies of one name in one request: each is a digest to compute.
const SECRETS_MAX: usize = 4;

/// The value of `Set-Cookie` that gives a secret to a browser: for this server alone, for no script, never on a request that
/// another site begins.
pub fn set_cookie(secret: &str) -> String {
    format!("{COOKIE}={secret}; HttpOnly; SameSite=Strict; path=/")
}

/// The one that takes it back.
pub fn unset_cookie() -> String {
    format!("{COOKIE}=; expires=Thu, 01 Jan 1970 00:00:00 GMT; HttpOnly; SameSite=Strict; path=/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_end_by_silence_and_by_logout() {
        let mut sessions = Sessions::default();
        let now = Instant::now();
        let secret = sessions.begin(now).unwrap();
        assert_eq!(secret.len(), 48);
        let half = now + IDLE_TIME / 2;
        assert!(sessions.is_known(&secret, half));
        assert!(
            sessions.is_known(&secret, half + IDLE_TIME * 2 / 3),
            "it was used"
        );
        assert!(!sessions.is_known(&secret, half + IDLE_TIME * 2));
        let other = sessions.begin(now).unwrap();
        assert_ne!(other, secret);
        sessions.end(&other);
        assert!(!sessions.is_known(&other, now));
        for wrong in ["", "x", &"0".repeat(48)] {
            assert!(!sessions.is_known(wrong, now));
        }
    }

    #[test]
    fn the_number_of_sessions_has_a_limit_and_those_in_use_stay() {
        let mut sessions = Sessions::default();
        let begun = Instant::now();
        let own = sessions.begin(begun).unwrap();
        for n in 1..1_000_u32 {
            let now = begun + Duration::from_millis(n.into());
            sessions.begin(now).unwrap();
            assert!(sessions.is_known(&own, now));
        }
        assert_eq!(sessions.0.len(), SESSIONS_MAX);
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let found = |text| secrets(text).collect::<Vec<_>>();
        assert_eq!(found("a=b; SID=x; SIDE=y"), ["x"]);
        assert_eq!(found("SID=x; HttpOnly; SameSite=Strict; path=/"), ["x"]);
        assert_eq!(found("xSID=x;sid=y; SID"), [""; 0]);
        assert_eq!(found(&"SID=x;".repeat(100)).len(), SECRETS_MAX);
    }
}
