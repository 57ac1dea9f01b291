//! The devices of a pool as one medium.
//!
//! Addresses say on which device something is (docs/formats/pool.md, "Growing"). A set only gets more devices; those that a
//! superblock names stay for its life. The first is the one with the superblock.

use std::io;
use std::sync::{Arc, RwLock};

use quarry_contract::MediumId;
use smallvec::SmallVec;

use crate::format::{MAX_ADDED_DEVICES, split_address};
use crate::locks::{read, write};
use crate::{DirectFile, PoolDevice};

/// One or several devices, as a medium.
pub struct DeviceSet {
    first: Arc<dyn PoolDevice>,
    added: RwLock<[Option<Arc<dyn PoolDevice>>; MAX_ADDED_DEVICES]>,
}

impl DeviceSet {
    /// The set of one device.
    pub fn of(first: Arc<dyn PoolDevice>) -> Arc<Self> {
        Arc::new(Self {
            first,
            added: Default::default(),
        })
    }

    /// The set of several, the added ones in their order.
    pub fn with(first: Arc<dyn PoolDevice>, added: Vec<Arc<dyn PoolDevice>>) -> Arc<Self> {
        let set = Self::of(first);
        for (number, device) in added.into_iter().enumerate() {
            set.set(number, Some(device));
        }
        set
    }

    /// Returns the device with the superblock.
    pub fn first(&self) -> &Arc<dyn PoolDevice> {
        &self.first
    }

    /// Puts the added device with this number, from 0, in its place, or takes it out of a place that no superblock names.
    pub(crate) fn set(&self, number: usize, device: Option<Arc<dyn PoolDevice>>) {
        write(&self.added)[number] = device;
    }

    /// Returns the device with this number in addresses.
    pub(crate) fn device(&self, number: usize) -> Option<Arc<dyn PoolDevice>> {
        match number.checked_sub(1) {
            None => Some(Arc::clone(&self.first)),
            Some(added) => read(&self.added).get(added)?.clone(),
        }
    }

    /// Returns all devices with their numbers in addresses.
    pub(crate) fn all(&self) -> SmallVec<[(usize, Arc<dyn PoolDevice>); 2]> {
        let added = read(&self.added);
        let added = (1..)
            .zip(added.iter())
            .filter_map(|(number, device)| Some((number, Arc::clone(device.as_ref()?))));
        std::iter::once((0, Arc::clone(&self.first)))
            .chain(added)
            .collect()
    }

    fn on<T>(&self, address: u64, call: impl FnOnce(&dyn PoolDevice, u64) -> io::Result<T>) -> io::Result<T> {
        let (number, offset) = split_address(address);
        if number == 0 {
            return call(&*self.first, offset);
        }
        let missing = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("the pool has no device {number}"),
            )
        };
        call(&*self.device(number).ok_or_else(missing)?, offset)
    }
}

impl PoolDevice for DeviceSet {
    /// Returns the size of the first device.
    fn size_bytes(&self) -> io::Result<u64> {
        self.first.size_bytes()
    }

    fn read_at(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.on(address, |device, offset| device.read_at(offset, buffer))
    }

    fn write_at(&self, address: u64, data: &[u8]) -> io::Result<()> {
        self.on(address, |device, offset| device.write_at(offset, data))
    }

    fn write_zeroes(&self, address: u64, length: u64) -> io::Result<()> {
        self.on(address, |device, offset| device.write_zeroes(offset, length))
    }

    fn discard(&self, address: u64, length: u64) -> io::Result<()> {
        self.on(address, |device, offset| device.discard(offset, length))
    }

    /// Tells whether any of the devices may.
    fn may_run_out(&self) -> bool {
        self.all().iter().any(|(_, device)| device.may_run_out())
    }

    fn allocate(&self, address: u64, length: u64) -> io::Result<()> {
        self.on(address, |device, offset| device.allocate(offset, length))
    }

    fn is_hole(&self, address: u64, length: u64) -> bool {
        self.on(address, |device, offset| Ok(device.is_hole(offset, length)))
            .unwrap_or(false)
    }

    /// That of the first: what was added later may be on others.
    fn medium(&self) -> MediumId {
        self.first.medium()
    }

    /// Flushes all devices.
    fn flush(&self) -> io::Result<()> {
        let added = read(&self.added).clone();
        self.first.flush()?;
        added.iter().flatten().try_for_each(|device| device.flush())
    }

    fn check_before_flush(&self) -> io::Result<()> {
        self.first.check_before_flush()?;
        let added = read(&self.added);
        added
            .iter()
            .flatten()
            .try_for_each(|device| device.check_before_flush())
    }

    /// Returns the file of the first device.
    fn direct_file(&self) -> Option<DirectFile<'_>> {
        self.first.direct_file()
    }

    fn grow(&self, least_bytes: u64) -> io::Result<u64> {
        self.first.grow(least_bytes)
    }
}
