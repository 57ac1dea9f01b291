//! A target in one thread, with everything that could differ from run to run made the same.

use std::cell::OnceCell;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::sys::epoll::EpollTimeout;
use quarry_contract::memory::{MemoryDevice, MemoryKeeper};
use quarry_contract::{
    Access, BlockDevice, ChapCredentials, ExportSpec, Grant, InitiatorName, Keeper, Target, VolumeId,
};
use socket2::SockRef;
use uuid::Uuid;

use crate::background::Jobs;
use crate::chap::Credentials;
use crate::pass::Pass;
use crate::reactor::{Farewell, Reactor};
use crate::{IscsiTarget, StartError, TargetConfig};

/// The initiator that is granted volumes: 1 for reading and writing, 3 for reading only.
pub const INITIATOR: &str = "iqn.2026-11.io.quarry.fuzz:host";
/// Its user.
pub const USER: &str = "user-1";

/// The size of each volume at first, in bytes.
pub const SIZE_BYTES: u64 = 256 << 10;

/// How often the reactor may turn before nothing moves any more: far more than honest work takes.
const MOST_TURNS: usize = 100_000;

/// The only challenge there is, so that recorded responses are right ones.
pub fn challenge() -> [u8; 33] {
    [7; 33]
}

/// Random bytes that are always the same; a challenge is the only use.
fn not_random(bytes: &mut [u8]) -> io::Result<()> {
    bytes.fill(challenge()[0]);
    Ok(())
}

/// The id of a volume.
pub fn volume_id(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(
        0x6f96_19ff_0000_4000_8000_0000_0000_0000 + number,
    ))
}

/// The name of a volume's target.
pub fn target_name(number: u128) -> String {
    format!("iqn.2026-11.io.quarry:volume-{}", volume_id(number))
}

/// The credentials of [`INITIATOR`].
pub fn credentials() -> Credentials {
    let chap = |username: &str, secret: &str| ChapCredentials {
        username: username.to_owned(),
        secret: secret.to_owned().into(),
    };
    Credentials {
        initiator: chap(USER, "secret-secret-16"),
        target: Some(chap("target-1", "target-secret-16")),
    }
}

/// Returns the name of [`INITIATOR`].
pub fn initiator() -> InitiatorName {
    InitiatorName::parse(INITIATOR).expect("a valid name")
}

/// A grant for [`INITIATOR`].
pub fn grant(access: Access) -> Grant {
    Grant {
        initiator: initiator(),
        access,
        chap: credentials().initiator,
        target_chap: credentials().target,
    }
}

fn config() -> TargetConfig {
    let mut config = TargetConfig::listening_on(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]);
    // Time plays no part.
    config.login_timeout = Duration::from_secs(3600);
    config.ping_interval = Duration::from_secs(3600);
    config.sanitize_bytes_per_second = u64::MAX;
    config
}

/// Starts a target with threads and a listener on loopback, and the same volumes, grants and challenge as in the
/// fuzz target `session`, for recording what real initiators say to it.
///
/// # Errors
/// When the target cannot start.
pub fn serve() -> Result<IscsiTarget, StartError> {
    let target = IscsiTarget::start_with(config(), Vec::new(), not_random)?;
    for (number, access) in [(1, Access::ReadWrite), (3, Access::ReadOnly)] {
        export(
            &target,
            number,
            &MemoryDevice::of_size(SIZE_BYTES),
            vec![grant(access)],
        );
    }
    Ok(target)
}

fn export(target: &IscsiTarget, number: u128, device: &Arc<MemoryDevice>, grants: Vec<Grant>) {
    let spec = ExportSpec {
        volume: volume_id(number),
        device: Arc::clone(device) as Arc<dyn BlockDevice>,
        grants,
        limits: quarry_contract::IoLimits::NONE,
        kept: Vec::new(),
        keeper: MemoryKeeper::new() as Arc<dyn Keeper>,
    };
    // A new export waits for nothing.
    let mut exported = target.export(spec);
    let poll = exported.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(poll, Poll::Ready(Ok(_))));
}

/// A control call that goes on while the target is driven.
type Call = Pin<Box<dyn Future<Output = ()>>>;

/// See the module.
pub struct World {
    target: Arc<IscsiTarget>,
    reactor: Option<Reactor>,
    jobs: Jobs,
    calls: Vec<Call>,
    /// Volume 1.
    pub device: Arc<MemoryDevice>,
    /// Volumes 2, which nobody is granted who is here, and 3, which may be read.
    untouchable: [Arc<MemoryDevice>; 2],
}

impl World {
    /// Makes one with three volumes and nobody logged in.
    pub fn new() -> Self {
        let (target, reactor, jobs) =
            IscsiTarget::driven(config(), not_random).expect("the system has descriptors left");
        let [device, second, third] = [(); 3].map(|()| MemoryDevice::of_size(SIZE_BYTES));
        let stranger = Grant {
            initiator: InitiatorName::parse("iqn.2026-11.io.quarry.fuzz:other").expect("a valid name"),
            access: Access::ReadWrite,
            chap: ChapCredentials {
                username: "user-2".to_owned(),
                secret: "nobody-knows-this".to_owned().into(),
            },
            target_chap: None,
        };
        export(&target, 1, &device, vec![grant(Access::ReadWrite)]);
        export(&target, 2, &second, vec![stranger]);
        export(&target, 3, &third, vec![grant(Access::ReadOnly)]);
        Self {
            target: Arc::new(target),
            reactor: Some(reactor),
            jobs,
            calls: Vec::new(),
            device,
            untouchable: [second, third],
        }
    }

    /// Connects as a listener would have it, and returns the initiator's end.
    pub fn connect(&mut self) -> TcpStream {
        thread_local!(static LISTENER: OnceCell<TcpListener> = const { OnceCell::new() });
        let (ours, theirs) = LISTENER.with(|listener| {
            let listener = listener.get_or_init(|| {
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port")
            });
            let address = listener.local_addr().expect("it is bound");
            let ours = TcpStream::connect(address).expect("loopback works");
            (ours, listener.accept().expect("the connection is there").0)
        });
        ours.set_nonblocking(true).expect("a socket");
        for socket in [&ours, &theirs] {
            // Gone at once when closed: a million of them must not use up the ports.
            SockRef::from(socket)
                .set_linger(Some(Duration::ZERO))
                .expect("a socket");
        }
        self.target.adopt(theirs);
        ours
    }

    /// Begins a control call.
    pub fn call(&mut self, call: impl AsyncFnOnce(Arc<IscsiTarget>) + 'static) {
        let target = Arc::clone(&self.target);
        self.calls.push(Box::pin(async move { call(target).await }));
    }

    /// Drives everything until nothing moves. `read` takes what has been answered and tells whether there was
    /// anything.
    pub fn settle(&mut self, mut read: impl FnMut() -> bool) {
        for _ in 0..MOST_TURNS {
            let reactor = self.reactor.as_mut().expect("there until the end");
            let events = reactor.turn(EpollTimeout::ZERO).expect("not stopped");
            let jobs = self.jobs.run_waiting();
            let calls = self.calls.len();
            self.calls.retain_mut(|call| {
                let poll = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                poll.is_pending()
            });
            let moved = events > 0 || jobs > 0 || self.calls.len() < calls;
            for device in &self.untouchable {
                assert_eq!(device.mapped_bytes(), 0, "T1: written without the right to");
            }
            if !read() && !moved {
                return;
            }
        }
        panic!("it goes on for ever");
    }

    /// Ends everything, the initiators' sockets being closed, and checks that nothing is left.
    pub fn end(mut self) {
        self.device.release();
        self.settle(|| false);
        assert!(self.calls.is_empty(), "a control call does not end");
        assert_eq!(self.target.pending_logins(), 0, "connections are counted right");
        let mut sessions = self.target.sessions(None);
        match sessions.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(sessions)) => assert_eq!(sessions, [], "a session outlives its connection"),
            other => panic!("{other:?}"),
        }
        drop(sessions);
        self.target.stop(&Pass::then(|| {}), Farewell::Drained);
        let mut reactor = self.reactor.take().expect("there until the end");
        while let Some(events) = reactor.turn(EpollTimeout::ZERO) {
            assert!(events > 0, "a connection outlives its socket");
        }
    }
}
