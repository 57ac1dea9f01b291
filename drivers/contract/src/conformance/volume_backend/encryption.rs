//! K1 to K4 of [`VolumeEncryption`], for a backend that has it. What lies on a medium is for each driver to look at.

use super::{BackendFixture, MIB, Subject, snapshot_id, volume_id};
use crate::conformance::block_on;
use crate::conformance::pattern::pattern;
use crate::{
    DataSource, DriverError, Durability, Encryption, ErrorKind, OpenMode, Outcome, VersionId,
    VolumeEncryption, VolumeInfo, VolumeKey, VolumeSpec,
};

pub(super) fn run(fixture: &mut dyn BackendFixture) {
    if fixture.fresh().encryption().is_none() {
        return;
    }
    creating_again_needs_the_same_key(fixture);
    a_family_shares_its_key_and_is_locked_as_one(fixture);
    a_restart_locks(fixture);
    a_key_can_be_changed(fixture);
}

fn key(number: u8) -> VolumeKey {
    VolumeKey::new([number; 32])
}

fn id(number: u64) -> VersionId {
    VersionId::Volume(volume_id(number))
}

fn encryption(subject: &Subject) -> &dyn VolumeEncryption {
    subject.backend.encryption().expect("it has been asked for")
}

fn create(subject: &Subject, number: u64, with: u8) -> Result<Outcome<VolumeInfo>, DriverError> {
    block_on(encryption(subject).create_encrypted_volume(
        &VolumeSpec::new(volume_id(number), MIB, DataSource::Blank),
        &key(with),
    ))
}

fn unlock(subject: &Subject, number: u64, with: u8) -> Result<Outcome<()>, DriverError> {
    block_on(encryption(subject).unlock(id(number), &key(with)))
}

fn state(subject: &Subject, number: u64) -> Encryption {
    let info = block_on(subject.backend.volume(volume_id(number)));
    info.expect("volume").encryption
}

fn assert_locked(subject: &Subject, id: VersionId, clause: &str) {
    let error = subject.device(id, OpenMode::ReadOnly).map(drop);
    let error = error.expect_err("K3: opening what is locked");
    assert_eq!(error.kind(), ErrorKind::Locked, "{clause}: {error}");
}

fn creating_again_needs_the_same_key(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let made = create(&subject, 1, 1).expect("K1: creating an encrypted volume");
    assert!(made.is_changed(), "V1: creating a new volume is Changed");
    assert_eq!(made.into_inner().encryption, Encryption::Unlocked, "K1");
    let again = create(&subject, 1, 1).expect("V1: creating it again");
    assert!(!again.is_changed(), "V1: creating it again is Unchanged");
    for refused in [create(&subject, 1, 2), subject.create(1, MIB, DataSource::Blank)] {
        let error = refused.expect_err("V1: another volume");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "V1: {error}");
    }
    subject.blank(2, MIB);
    assert_eq!(state(&subject, 2), Encryption::None, "a plain volume");
    let error = create(&subject, 2, 1).expect_err("V1: a plain volume is another one");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "V1: {error}");
    let error = unlock(&subject, 2, 1).expect_err("a plain volume has no key");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    let error = unlock(&subject, 9, 1).expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

fn a_family_shares_its_key_and_is_locked_as_one(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    create(&subject, 1, 1).expect("creating");
    create(&subject, 5, 5).expect("creating");
    let data = pattern(1, MIB as usize);
    subject
        .writer(1)
        .write(0, &data, Durability::Flushed)
        .expect("write");
    subject.snapshot(1, 1);
    subject.clone_of(2, MIB, DataSource::Snapshot(snapshot_id(1)));
    subject.clone_of(3, MIB, DataSource::Volume(volume_id(2)));
    let open = subject.device(id(3), OpenMode::ReadOnly).expect("open");
    let error = block_on(encryption(&subject).lock(id(1))).expect_err("K3: one of the family is open");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    drop(open);
    let locked = block_on(encryption(&subject).lock(VersionId::Snapshot(snapshot_id(1))));
    assert!(locked.expect("lock").is_changed());
    let again = block_on(encryption(&subject).lock(id(1))).expect("lock again");
    assert!(!again.is_changed());
    for member in [id(1), id(2), id(3), VersionId::Snapshot(snapshot_id(1))] {
        assert_locked(&subject, member, "K3");
    }
    assert_eq!(state(&subject, 5), Encryption::Unlocked, "another family");
    let error = unlock(&subject, 2, 5).expect_err("K2: another family's key");
    assert_eq!(error.kind(), ErrorKind::WrongKey, "K2: {error}");
    assert_locked(&subject, id(2), "K2");
    assert!(unlock(&subject, 3, 1).expect("unlock").is_changed());
    assert!(!unlock(&subject, 1, 1).expect("unlock again").is_changed());
    for number in [1, 2, 3] {
        assert!(subject.contents(number) == data, "B1: volume {number}");
    }
    for number in [1, 2, 3] {
        subject.delete(number).expect("V5: delete");
    }
    assert!(
        subject.contents_of(VersionId::Snapshot(snapshot_id(1))) == data,
        "K4: the snapshot keeps the key"
    );
}

fn a_restart_locks(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    create(&subject, 1, 1).expect("creating");
    let data = pattern(2, MIB as usize);
    subject
        .writer(1)
        .write(0, &data, Durability::Flushed)
        .expect("write");
    let Some(backend) = fixture.power_cut(subject.backend) else {
        return;
    };
    let subject = Subject { backend };
    assert_eq!(state(&subject, 1), Encryption::Locked, "K3");
    assert_locked(&subject, id(1), "K3");
    subject.snapshot(1, 1);
    subject.clone_of(2, 2 * MIB, DataSource::Snapshot(snapshot_id(1)));
    let error = unlock(&subject, 1, 2).expect_err("K2: a wrong key");
    assert_eq!(error.kind(), ErrorKind::WrongKey, "K2: {error}");
    unlock(&subject, 2, 1).expect("unlock");
    assert!(subject.contents(1) == data, "V2, K3");
    let mut clone = data;
    clone.resize(2 * MIB as usize, 0);
    assert!(
        subject.contents(2) == clone,
        "V6: what a larger clone adds reads as zeros"
    );
}

fn a_key_can_be_changed(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    create(&subject, 1, 1).expect("creating");
    let data = pattern(3, MIB as usize);
    subject
        .writer(1)
        .write(0, &data, Durability::Flushed)
        .expect("write");
    let change = |from: u8, to: u8| block_on(encryption(&subject).change_key(id(1), &key(from), &key(to)));
    let error = change(2, 3).expect_err("K2: changing with a wrong key");
    assert_eq!(error.kind(), ErrorKind::WrongKey, "K2: {error}");
    assert!(change(1, 2).expect("change").is_changed());
    assert!(!change(1, 2).expect("change again").is_changed());
    block_on(encryption(&subject).lock(id(1))).expect("lock");
    let error = unlock(&subject, 1, 1).expect_err("K2: the old key");
    assert_eq!(error.kind(), ErrorKind::WrongKey, "K2: {error}");
    unlock(&subject, 1, 2).expect("the new key");
    assert!(subject.contents(1) == data);
}
