//! Listening sockets that outlive a program: the one that takes its place in the same process (execve(2)) finds them.
//!
//! A descriptor without `FD_CLOEXEC` is the next program's too. Its number travels in a text, with the process's id:
//! a child that inherits the text along with the environment is not meant.
//!
//! Clients that connect in between wait in the sockets' queues, and notice nothing but that.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};

/// Whether this process has taken what its predecessor left, or has left something itself: from then on a descriptor
/// that is not closed by an exec may have an owner here.
static IS_SETTLED: AtomicBool = AtomicBool::new(false);

/// A listening socket.
#[derive(Debug)]
pub enum Listening {
    /// Of TCP.
    Tcp(TcpListener),
    /// In the file system.
    Unix(UnixListener),
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listening::Tcp(socket) => socket.as_fd(),
            Listening::Unix(socket) => socket.as_fd(),
        }
    }
}

/// What kind of socket a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Unix,
}

/// Leaves listening sockets to the program that takes this one's place. Returns the text that names them, for its
/// environment.
///
/// # Errors
/// When the system refuses; then some may be left.
pub fn leave(sockets: &[Listening]) -> io::Result<String> {
    IS_SETTLED.store(true, Ordering::SeqCst);
    for socket in sockets {
        set_closed_by_exec(socket.as_fd(), false)?;
    }
    let number = |socket: &Listening| socket.as_fd().as_raw_fd().to_string();
    let numbers: Vec<String> = sockets.iter().map(number).collect();
    Ok(format!("{}:{}", std::process::id(), numbers.join(",")))
}

/// Takes the sockets that `text` names, once in the life of a program and before it leaves any itself. What is not a
/// listening socket that an exec has left open is passed over, and so is a text that was meant for another process.
pub fn take(text: &str) -> Vec<Listening> {
    if IS_SETTLED.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let Some((process, numbers)) = text.split_once(':') else {
        return Vec::new();
    };
    if process.parse() != Ok(std::process::id()) {
        return Vec::new();
    }
    let mut numbers: Vec<RawFd> = numbers
        .split(',')
        .filter_map(|number| number.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.into_iter().filter_map(take_one).collect()
}

fn take_one(number: RawFd) -> Option<Listening> {
    if number < 0 {
        return None;
    }
    let kind = {
        // SAFETY: the number is not -1, and the borrow ends with this block, in which only system calls see it that
        // answer EBADF for a descriptor that is not open. This function keeps that true.
        // Safe code would not do: a number from the environment has no owner to borrow from.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let kind = kind_of_left_listener(descriptor)?;
        set_closed_by_exec(descriptor, true).ok()?;
        kind
    };
    // SAFETY: the descriptor is open, and nobody in this program owns it: it came through an exec, since descriptors
    // that are opened here are closed by one (std and this workspace open no others), and `take`, the only place that
    // makes owners of such, runs once (IS_SETTLED) and goes to each number once.
    // Safe code would not do: ownership of a descriptor that was inherited has to begin somewhere.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    Some(match kind {
        Kind::Tcp => Listening::Tcp(owned.into()),
        Kind::Unix => Listening::Unix(owned.into()),
    })
}

/// Returns what kind of listening socket a descriptor is that is not closed by an exec; nothing for others.
fn kind_of_left_listener(descriptor: BorrowedFd<'_>) -> Option<Kind> {
    let is_left = fcntl(descriptor, FcntlArg::F_GETFD)
        .is_ok_and(|flags| !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    let is_stream = getsockopt(&descriptor, sockopt::SockType) == Ok(SockType::Stream);
    let listens = getsockopt(&descriptor, sockopt::AcceptConn) == Ok(true);
    let address = getsockname::<SockaddrStorage>(descriptor.as_raw_fd()).ok()?;
    let kind = match address.family()? {
        AddressFamily::Inet | AddressFamily::Inet6 => Kind::Tcp,
        AddressFamily::Unix => Kind::Unix,
        _ => return None,
    };
    (is_left && is_stream && listens).then_some(kind)
}

fn set_closed_by_exec(descriptor: BorrowedFd<'_>, closed: bool) -> io::Result<()> {
    let flags = if closed {
        FdFlag::FD_CLOEXEC
    } else {
        FdFlag::empty()
    };
    fcntl(descriptor, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// One test, because a program takes once.
    #[test]
    fn listeners_that_were_left_are_taken_once_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let left = [
            Listening::Tcp(tcp),
            Listening::Unix(UnixListener::bind(&path).unwrap()),
        ];
        let owned_here = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = TcpStream::connect(address).unwrap();
        set_closed_by_exec(connection.as_fd(), false).unwrap();
        let text = leave(&left).unwrap();
        // As after an exec: nobody owns them.
        let numbers = left.map(|socket| match socket {
            Listening::Tcp(socket) => socket.into_raw_fd(),
            Listening::Unix(socket) => socket.into_raw_fd(),
        });
        let process = std::process::id();
        assert_eq!(text, format!("{process}:{},{}", numbers[0], numbers[1]));
        IS_SETTLED.store(false, Ordering::SeqCst);

        let all = format!(
            "{text},{},-1,999999,x,{},{}",
            numbers[0],
            owned_here.as_raw_fd(),
            connection.as_raw_fd()
        );
        let taken = take(&all);
        assert_eq!(taken.len(), 2);
        for socket in &taken {
            match socket {
                Listening::Tcp(socket) => assert_eq!(socket.local_addr().unwrap(), address),
                Listening::Unix(socket) => {
                    assert_eq!(socket.local_addr().unwrap().as_pathname(), Some(path.as_path()));
                }
            }
            let flags = fcntl(socket, FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
        }
        TcpStream::connect(address).unwrap();
        UnixStream::connect(&path).unwrap();

        leave(&taken).unwrap();
        assert!(take(&text).is_empty(), "a second time");
        for strange in ["", "1", "1:3", &format!("{process}:")] {
            IS_SETTLED.store(false, Ordering::SeqCst);
            assert!(take(strange).is_empty(), "{strange}");
        }
    }
}
