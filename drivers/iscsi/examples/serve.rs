//! Serves one file over iSCSI, for benchmarks and for trying initiators by hand.
//!
//!     serve PORTAL FILE REACTORS
//!
//! The file is read and written with plain system calls when a queue is kicked, so that what is measured is the
//! target. Prints the URL to use and serves until it is killed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use quarry_contract::conformance::block_on;
use quarry_contract::memory::MemoryKeeper;
use quarry_contract::{
    Access, BlockDevice, ChapCredentials, Completion, DeviceLimits, ExportSpec, Extent, Grant, InitiatorName,
    IoBuffer, IoError, IoLimits, IoQueue, MediumId, QueueFull, Request, Target, Verb, VolumeId,
};
use quarry_iscsi::{IscsiTarget, TargetConfig};

struct FileDevice {
    file: File,
    size_bytes: u64,
}

struct FileQueue {
    device: Arc<FileDevice>,
    waiting: Vec<Request>,
    done: Vec<Completion>,
    wake: EventFd,
}

impl BlockDevice for FileDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            optimal_io_bytes: 64 << 10,
            discard_granularity_bytes: 64 << 10,
            max_transfer_bytes: 1 << 20,
            atomic_write_bytes: 0,
            useful_in_flight_bytes: 1 << 20,
        }
    }

    fn medium(&self) -> MediumId {
        MediumId::default()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn extents(&self, _offset: u64, length: u64, _most: usize) -> Result<Vec<Extent>, IoError> {
        Ok(vec![Extent { length, mapped: true }])
    }

    fn open_queue(self: Arc<Self>, _depth: u32) -> io::Result<Box<dyn IoQueue>> {
        Ok(Box::new(FileQueue {
            device: self,
            waiting: Vec::new(),
            done: Vec::new(),
            wake: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        }))
    }
}

impl FileDevice {
    fn run(&self, verb: Verb) -> (io::Result<()>, Option<IoBuffer>) {
        match verb {
            Verb::Read { offset, mut buffer } => (self.file.read_exact_at(&mut buffer, offset), Some(buffer)),
            Verb::Write { offset, buffer, .. } => (self.file.write_all_at(&buffer, offset), Some(buffer)),
            Verb::WriteAtomic { buffer, .. } => (Err(io::ErrorKind::Unsupported.into()), Some(buffer)),
            Verb::Flush => (self.file.sync_data(), None),
            Verb::Discard { offset, length } | Verb::WriteZeroes { offset, length, .. } => {
                (self.zero(offset, length), None)
            }
        }
    }

    fn zero(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        let zeros = [0; 64 << 10];
        while length > 0 {
            let part = length.min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..part as usize], offset)?;
            offset += part;
            length -= part;
        }
        Ok(())
    }
}

impl IoQueue for FileQueue {
    fn submit(&mut self, request: Request) -> Result<(), QueueFull> {
        self.waiting.push(request);
        Ok(())
    }

    fn kick(&mut self) {
        for Request { tag, verb } in self.waiting.drain(..) {
            let (result, buffer) = self.device.run(verb);
            let result = result.map_err(|error| IoError::Medium {
                detail: error.to_string(),
            });
            self.done.push(Completion { tag, result, buffer });
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.done);
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, portal, path, reactors] = arguments.as_slice() else {
        eprintln!("usage: serve PORTAL FILE REACTORS");
        std::process::exit(2);
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("the file opens");
    let size_bytes = file.metadata().expect("the file has a size").len();
    let mut config = TargetConfig::listening_on(vec![portal.parse().expect("a portal is address:port")]);
    config.reactors = reactors.parse().expect("a number of reactors");
    let target = IscsiTarget::start(config).expect("the target starts");
    let grant = |initiator: &str| Grant {
        initiator: InitiatorName::parse(initiator).expect("a valid name"),
        access: Access::ReadWrite,
        chap: ChapCredentials {
            username: "bench".to_owned(),
            secret: "bench-secret-016".to_owned().into(),
        },
        target_chap: None,
    };
    let names = std::env::var("INITIATORS").unwrap_or_else(|_| "iqn.2026-11.io.quarry:bench".to_owned());
    let spec = ExportSpec {
        volume: VolumeId(uuid::Uuid::from_u128(1)),
        device: Arc::new(FileDevice { file, size_bytes }),
        grants: names.split(',').map(grant).collect(),
        limits: IoLimits::NONE,
        kept: Vec::new(),
        keeper: MemoryKeeper::new(),
    };
    let info = block_on(target.export(spec)).expect("the export").into_inner();
    for portal in target.portals() {
        println!(
            "iscsi://bench%bench-secret-016@{portal}/{}/{}",
            info.target_name, info.lun
        );
    }
    loop {
        std::thread::park();
    }
}
