//! TCP streams over the ring: receive into segments, send runs of blocks (layer 4).
//!
//! Rules for callers: one reader and one writer task per stream, which own their operation until it
//! completes. To give up: [`Stream::shutdown`], then await the operation. Dropping a stream with an
//! operation pending keeps the socket open until that operation ends.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use io_uring::{opcode, types};

use super::buffers::Segment;
use super::map::FileMap;
use super::op;
use super::scatter::Scatter;
use super::socket::{self, Carrier, SocketOptions};

/// Vectors of one SENDMSG (IOV_MAX): a header and its data for 512 blocks.
const IOVECS_MAX: usize = 1024;

/// Longest run of zeros in one part: a block of BEP 3.
pub const ZEROS_MAX: usize = 16 * 1024;
static ZEROS: [u8; ZEROS_MAX] = [0; ZEROS_MAX];

/// Where the payload of a part lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendData {
    /// Bytes of a segment handed over with the run.
    Segment {
        /// Position in the run's segments.
        index: usize,
        /// Bytes inside that segment.
        range: Range<usize>,
    },
    /// Bytes of a file, from the page cache.
    Mapped {
        /// Position in the run's mappings.
        index: usize,
        /// First byte in the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
    },
    /// That many zeros, at most [`ZEROS_MAX`] (pad files, BEP 47).
    Zeros(usize),
}

/// One header and the payload that follows it on the wire; the header may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendPart {
    /// Bytes inside the run's headers.
    pub header: Range<usize>,
    /// The payload.
    pub data: SendData,
}

/// What one [`Stream::send_run`] sends: parts, and the memory they lie in.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// All headers, one behind the other.
    pub headers: Vec<u8>,
    /// In the order of the wire.
    pub parts: Vec<SendPart>,
    /// Memory of ours.
    pub segments: Vec<Segment>,
    /// Files.
    pub maps: Vec<FileMap>,
}

impl Outgoing {
    /// Its bytes in order, for who copies them; `None` when some lie in a file, which may become shorter at any time and is
    /// for the kernel alone to read, or outside of their memory.
    pub fn slices(&self) -> Option<Vec<&[u8]>> {
        let mut slices = Vec::with_capacity(self.parts.len() * 2);
        for part in &self.parts {
            slices.push(self.headers.get(part.header.clone())?);
            slices.push(match &part.data {
                SendData::Segment { index, range } => {
                    self.segments.get(*index)?.as_slice().get(range.clone())?
                }
                SendData::Zeros(length) => ZEROS.get(..*length)?,
                SendData::Mapped { .. } => return None,
            });
        }
        Some(slices)
    }
}

/// What TCP knows of the connection (TCP_INFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// TCP segments retransmitted since the start.
    pub retransmits: u32,
    /// Congestion window in segments.
    pub congestion_window: u32,
}

struct Inner {
    fd: OwnedFd,
    sent_bytes: Cell<u64>,
    received_bytes: Cell<u64>,
}

/// A connected TCP socket; clones share it. Closed when the last clone and operation are gone.
#[derive(Clone)]
pub struct Stream {
    inner: Rc<Inner>,
}

impl Stream {
    /// Connects within `options.connect_timeout`. Dropping the future ends the attempt.
    ///
    /// # Errors
    ///
    /// As connect(2); TimedOut; options the kernel refuses.
    pub async fn connect(addr: SocketAddr, options: &SocketOptions) -> io::Result<Stream> {
        let fd = socket::open(&addr, Carrier::Tcp, libc::SOCK_NONBLOCK, options)?;
        if let Some(ip) = options.bind {
            // Without this a source address would reserve a port that other destinations could share.
            socket::set_int(&fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            socket::bind(&fd, &SocketAddr::new(ip, 0))?;
        }
        let stream = Stream::from_fd(fd);
        match socket::connect(&stream.inner.fd, &addr) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {
                stream.finish_connect(options.connect_timeout).await?;
            }
            Err(e) => return Err(e),
        }
        socket::set_blocking(stream.inner.fd.as_fd())?;
        Ok(stream)
    }

    async fn finish_connect(&self, timeout: Duration) -> io::Result<()> {
        let guard = Abort(Some(self));
        let mut writable = pin!(self.poll(libc::POLLOUT));
        tokio::select! {
            biased;
            ready = &mut writable => ready?,
            () = tokio::time::sleep(timeout) => {
                drop(guard);
                // The operation owns the socket until the shutdown has woken it.
                let _ = writable.await;
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        guard.disarm();
        socket::take_error(&self.inner.fd)
    }

    /// Wraps a connected, blocking socket.
    pub fn from_fd(fd: OwnedFd) -> Stream {
        let inner = Inner {
            fd,
            sent_bytes: Cell::new(0),
            received_bytes: Cell::new(0),
        };
        Stream {
            inner: Rc::new(inner),
        }
    }

    /// Receives what is there, at least one byte, into `range` of the segment; 0 is the end of the stream.
    ///
    /// # Errors
    ///
    /// As recv(2).
    ///
    /// # Panics
    ///
    /// If the range leaves the segment.
    pub async fn recv(
        &self,
        segment: Segment,
        range: Range<usize>,
    ) -> (io::Result<usize>, Segment) {
        self.recv_with(segment, range, 0).await
    }

    /// Receives what is there now; WouldBlock when there is nothing.
    ///
    /// # Errors
    ///
    /// As recv(2).
    ///
    /// # Panics
    ///
    /// If the range leaves the segment.
    pub async fn recv_now(
        &self,
        segment: Segment,
        range: Range<usize>,
    ) -> (io::Result<usize>, Segment) {
        self.recv_with(segment, range, libc::MSG_DONTWAIT).await
    }

    /// Receives what is there now into the parts in their order; WouldBlock when there is nothing.
    ///
    /// # Errors
    ///
    /// As recvmsg(2).
    pub async fn recv_scattered_now(&self, into: Scatter) -> (io::Result<usize>, Scatter) {
        let into = Receive {
            inner: Rc::clone(&self.inner),
            iovecs: into.iovecs(),
            into,
            // SAFETY: zero bytes are a valid msghdr.
            message: Box::new(unsafe { std::mem::zeroed() }),
        };
        // SAFETY: the stored data owns the socket, the message, its vectors and the memory of the parts, each behind a
        // pointer that does not move with it. The scratch is the operation's alone, and of the segments that it has
        // landings in nobody sees or writes those ranges.
        let op = unsafe { op::submit(into, Receive::entry) };
        let (result, Receive { inner, into, .. }) = op.await;
        (inner.received(result), into)
    }

    async fn recv_with(
        &self,
        segment: Segment,
        range: Range<usize>,
        flags: i32,
    ) -> (io::Result<usize>, Segment) {
        assert!(range.start <= range.end && range.end <= segment.len());
        let length = u32::try_from(range.len()).unwrap_or(u32::MAX);
        // SAFETY: the stored data owns the socket and the segment, whose memory does not move.
        let op = unsafe {
            op::submit((Rc::clone(&self.inner), segment), |(inner, segment)| {
                let start = segment.start().add(range.start);
                opcode::Recv::new(types::Fd(inner.fd.as_raw_fd()), start, length)
                    .flags(flags)
                    .build()
            })
        };
        let (result, (inner, segment)) = op.await;
        (inner.received(result), segment)
    }

    /// Receives what is there, at least one byte, behind the bytes of `buf`, at most `max_bytes`; 0 is the end.
    ///
    /// # Errors
    ///
    /// As recv(2).
    pub async fn recv_vec(
        &self,
        mut buf: Vec<u8>,
        max_bytes: usize,
    ) -> (io::Result<usize>, Vec<u8>) {
        buf.reserve(max_bytes);
        let length = u32::try_from(max_bytes).unwrap_or(u32::MAX);
        // SAFETY: the stored data owns the socket and the vector, whose spare memory does not move.
        let op = unsafe {
            op::submit((Rc::clone(&self.inner), buf), |(inner, buf)| {
                let start = buf.as_mut_ptr().add(buf.len());
                opcode::Recv::new(types::Fd(inner.fd.as_raw_fd()), start, length).build()
            })
        };
        let (result, (inner, mut buf)) = op.await;
        let result = inner.received(result);
        if let Ok(n) = result {
            // SAFETY: the kernel has written `n <= max_bytes` bytes into the reserved space.
            unsafe { buf.set_len(buf.len() + n) };
        }
        (result, buf)
    }

    /// Waits until there is something to receive, the end of the stream included. Holds no buffer.
    ///
    /// # Errors
    ///
    /// When the ring refuses; errors of the socket come from the receive that follows.
    pub async fn readable(&self) -> io::Result<()> {
        self.poll(libc::POLLIN | libc::POLLRDHUP).await
    }

    async fn poll(&self, events: i16) -> io::Result<()> {
        poll(Rc::clone(&self.inner), events, |inner| &inner.fd).await
    }

    /// Sends all of `buf`.
    ///
    /// # Errors
    ///
    /// As send(2); what had been sent before is counted by [`Stream::sent_bytes`].
    pub async fn send_all(&self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let mut data = (Rc::clone(&self.inner), buf);
        let mut done = 0;
        while done < data.1.len() {
            let length = u32::try_from(data.1.len() - done).unwrap_or(u32::MAX);
            // SAFETY: the stored data owns the socket and the vector, whose bytes do not move.
            let op = unsafe {
                op::submit(data, |(inner, buf)| {
                    let start = buf.as_ptr().add(done);
                    opcode::Send::new(types::Fd(inner.fd.as_raw_fd()), start, length)
                        .flags(libc::MSG_NOSIGNAL)
                        .build()
                })
            };
            let result;
            (result, data) = op.await;
            match data.0.sent(result) {
                Ok(n) => done += n,
                Err(e) => return (Err(e), data.1),
            }
        }
        (Ok(()), data.1)
    }

    /// Sends `[header, data]` of each part in order, as few SENDMSG as the socket allows.
    ///
    /// # Errors
    ///
    /// As sendmsg(2), among them EFAULT when a mapped file has become shorter; InvalidInput when a part leaves its
    /// memory. What had been sent before is counted by [`Stream::sent_bytes`].
    pub async fn send_run(&self, out: Outgoing) -> (io::Result<()>, Outgoing) {
        // The kernel itself goes on after a short send, once the socket has room.
        let (result, out) = self.send_from(out, 0, libc::MSG_WAITALL).await;
        (result.map(drop), out)
    }

    /// Sends what the socket takes without waiting, from byte `first` of the run on; returns up to which byte it came.
    ///
    /// # Errors
    ///
    /// As [`Stream::send_run`].
    pub async fn send_run_now(&self, out: Outgoing, first: usize) -> (io::Result<usize>, Outgoing) {
        self.send_from(out, first, libc::MSG_DONTWAIT).await
    }

    async fn send_from(
        &self,
        out: Outgoing,
        first: usize,
        flags: i32,
    ) -> (io::Result<usize>, Outgoing) {
        let Some(iovecs) = plan_iovecs(&out) else {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "send part out of range");
            return (Err(error), out);
        };
        let mut run = Run {
            inner: Rc::clone(&self.inner),
            out,
            iovecs,
            first: 0,
            flags: libc::MSG_NOSIGNAL | flags,
            // SAFETY: zero bytes are a valid msghdr.
            message: Box::new(unsafe { std::mem::zeroed() }),
        };
        run.advance(first);
        let mut done = first;
        while run.first < run.iovecs.len() {
            // SAFETY: the stored data owns the socket, the message, its vectors and all they point
            // to, each behind a pointer that does not move with it.
            let op = unsafe { op::submit(run, Run::entry) };
            let result;
            (result, run) = op.await;
            match run.inner.sent(result) {
                Ok(n) => {
                    run.advance(n);
                    done += n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return (Err(e), run.out),
            }
        }
        (Ok(done), run.out)
    }

    /// Waits until the socket takes more bytes, or its end.
    ///
    /// # Errors
    ///
    /// When the ring refuses; errors of the socket come from the send that follows.
    pub async fn writable(&self) -> io::Result<()> {
        self.poll(libc::POLLOUT).await
    }

    /// Ends both directions at once: FIN goes out, pending operations complete.
    pub fn shutdown(&self) {
        // The only error is that the peer has already gone.
        let _ = socket::shutdown(&self.inner.fd);
    }

    /// Ends our own direction: FIN goes out behind what was sent, receiving goes on.
    pub fn shutdown_write(&self) {
        use nix::sys::socket::{Shutdown, shutdown};
        // The only error is that the peer has already gone.
        let _ = shutdown(self.inner.fd.as_raw_fd(), Shutdown::Write);
    }

    /// Bytes the kernel has taken so far, also in the middle of a run.
    pub fn sent_bytes(&self) -> u64 {
        self.inner.sent_bytes.get()
    }

    /// Bytes received so far.
    pub fn received_bytes(&self) -> u64 {
        self.inner.received_bytes.get()
    }

    /// Own address.
    ///
    /// # Errors
    ///
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        socket::local_addr(&self.inner.fd)
    }

    /// The peer's address.
    ///
    /// # Errors
    ///
    /// As getpeername(2).
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        socket::peer_addr(&self.inner.fd)
    }

    /// Sets TCP_USER_TIMEOUT.
    ///
    /// # Errors
    ///
    /// As setsockopt(2).
    pub fn set_user_timeout(&self, timeout: Duration) -> io::Result<()> {
        socket::set_user_timeout(&self.inner.fd, timeout)
    }

    /// Round-trip time and losses as TCP sees them.
    ///
    /// # Errors
    ///
    /// As getsockopt(2).
    pub fn tcp_info(&self) -> io::Result<TcpInfo> {
        // SAFETY: tcp_info is integers only: any bytes are valid.
        let info: libc::tcp_info =
            unsafe { socket::get(&self.inner.fd, libc::IPPROTO_TCP, libc::TCP_INFO)? };
        Ok(TcpInfo {
            rtt: Duration::from_micros(info.tcpi_rtt.into()),
            retransmits: info.tcpi_total_retrans,
            congestion_window: info.tcpi_snd_cwnd,
        })
    }
}

impl Inner {
    fn received(&self, result: io::Result<u32>) -> io::Result<usize> {
        let n = result?;
        self.received_bytes
            .set(self.received_bytes.get() + u64::from(n));
        usize::try_from(n).map_err(io::Error::other)
    }

    fn sent(&self, result: io::Result<u32>) -> io::Result<usize> {
        let n = result?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.sent_bytes.set(self.sent_bytes.get() + u64::from(n));
        usize::try_from(n).map_err(io::Error::other)
    }
}

/// Waits for events of a descriptor that `owner` owns.
pub(crate) async fn poll<T: Unpin + 'static>(
    owner: T,
    events: i16,
    fd: impl Fn(&T) -> &OwnedFd,
) -> io::Result<()> {
    // SAFETY: the stored data owns the descriptor; the entry names no memory.
    let op = unsafe {
        op::submit(owner, |owner| {
            let flags = u32::try_from(events).unwrap_or(0);
            opcode::PollAdd::new(types::Fd(fd(owner).as_raw_fd()), flags).build()
        })
    };
    op.await.0.map(drop)
}

/// Shuts the socket down unless disarmed: ends a connection attempt whose future was dropped.
struct Abort<'a>(Option<&'a Stream>);

impl Abort<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Abort<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.0 {
            stream.shutdown();
        }
    }
}

/// Stored data of one RECVMSG.
struct Receive {
    inner: Rc<Inner>,
    into: Scatter,
    iovecs: Vec<libc::iovec>,
    message: Box<libc::msghdr>,
}

impl Receive {
    fn entry(&mut self) -> io_uring::squeue::Entry {
        self.message.msg_iov = self.iovecs.as_mut_ptr();
        self.message.msg_iovlen = self.iovecs.len().min(IOVECS_MAX);
        let flags = u32::try_from(libc::MSG_DONTWAIT).unwrap_or(0);
        opcode::RecvMsg::new(types::Fd(self.inner.fd.as_raw_fd()), &raw mut *self.message)
            .flags(flags)
            .build()
    }
}

/// Stored data of one SENDMSG.
struct Run {
    inner: Rc<Inner>,
    out: Outgoing,
    iovecs: Vec<libc::iovec>,
    /// First vector that is not wholly sent.
    first: usize,
    flags: i32,
    message: Box<libc::msghdr>,
}

impl Run {
    fn entry(&mut self) -> io_uring::squeue::Entry {
        let rest = &mut self.iovecs[self.first..];
        self.message.msg_iov = rest.as_mut_ptr();
        self.message.msg_iovlen = rest.len().min(IOVECS_MAX);
        opcode::SendMsg::new(
            types::Fd(self.inner.fd.as_raw_fd()),
            &raw const *self.message,
        )
        .flags(self.flags as u32)
        .build()
    }

    /// Takes `n` sent bytes off the front.
    fn advance(&mut self, mut n: usize) {
        while let Some(iovec) = self.iovecs.get_mut(self.first) {
            if n < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.wrapping_byte_add(n);
                iovec.iov_len -= n;
                return;
            }
            n -= iovec.iov_len;
            self.first += 1;
        }
    }
}

/// The vectors of a run; empty ranges are left out. `None` when a range leaves its memory.
fn plan_iovecs(out: &Outgoing) -> Option<Vec<libc::iovec>> {
    let mut iovecs = Vec::with_capacity(out.parts.len() * 2);
    let mut push = |start: *const u8, length: usize| {
        if length > 0 {
            iovecs.push(libc::iovec {
                iov_base: start.cast_mut().cast(),
                iov_len: length,
            });
        }
    };
    for part in &out.parts {
        let header = out.headers.get(part.header.clone())?;
        push(header.as_ptr(), header.len());
        match &part.data {
            SendData::Segment { index, range } => {
                let bytes = out.segments.get(*index)?.as_slice().get(range.clone())?;
                push(bytes.as_ptr(), bytes.len());
            }
            SendData::Mapped {
                index,
                offset,
                length,
            } => push(out.maps.get(*index)?.slice(*offset, *length)?, *length),
            SendData::Zeros(length) => {
                push(ZEROS.get(..*length)?.as_ptr(), *length);
            }
        }
    }
    Some(iovecs)
}
