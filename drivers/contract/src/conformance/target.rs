//! What every [`Target`] promises of its books (T1 to T5, T8); what initiators see is the protocol's own tests'.

use std::sync::Arc;

use super::{block_on, eventually};
use crate::memory::{MemoryDevice, MemoryKeeper};
use crate::{
    Access, BlockDevice, ChapCredentials, ErrorKind, ExportSpec, Grant, InitiatorName, IoLimits, Outcome,
    Rate, RateLimits, Target, VolumeId,
};

/// How the suite gets targets.
pub trait TargetFixture {
    /// Makes a target without exports.
    fn fresh(&mut self) -> Arc<dyn Target>;
}

/// Runs every check.
///
/// # Panics
/// When the target breaks its contract; the message begins with the clause.
pub fn run(fixture: &mut dyn TargetFixture) {
    names_depend_only_on_the_volume(fixture);
    repeated_calls_are_unchanged(fixture);
    limits_are_replaced_as_a_whole(fixture);
    what_is_not_exported_is_not_found(fixture);
    unexport_drops_the_device(fixture);
    exporting_again_keeps_the_device(fixture);
    shutdown_drops_every_device(fixture);
}

fn volume(number: u128) -> VolumeId {
    VolumeId(uuid::Uuid::from_u128(0x7000_0000 + number))
}

fn initiator(host: &str) -> InitiatorName {
    InitiatorName::parse(&format!("iqn.2026-11.io.quarry.test:{host}")).expect("a valid name")
}

fn grant(host: &str, access: Access, secret: &str) -> Grant {
    Grant {
        initiator: initiator(host),
        access,
        chap: ChapCredentials {
            username: format!("user-{host}"),
            secret: secret.to_owned().into(),
        },
        target_chap: None,
    }
}

fn spec(number: u128, device: &Arc<MemoryDevice>, grants: &[Grant]) -> ExportSpec {
    ExportSpec {
        volume: volume(number),
        device: Arc::clone(device) as Arc<dyn BlockDevice>,
        grants: grants.to_vec(),
        limits: IoLimits::NONE,
        kept: Vec::new(),
        keeper: MemoryKeeper::new(),
    }
}

fn changed<T>(outcome: Result<Outcome<T>, crate::DriverError>, what: &str) -> bool {
    outcome
        .unwrap_or_else(|error| panic!("T3: {what}: {error}"))
        .is_changed()
}

fn names_depend_only_on_the_volume(fixture: &mut dyn TargetFixture) {
    let (one, two) = (fixture.fresh(), fixture.fresh());
    assert!(!one.portals().is_empty(), "T1: a target has a portal");
    let device = MemoryDevice::of_size(1 << 20);
    let before = one.address_of(volume(1));
    let exported = block_on(one.export(spec(1, &device, &[])))
        .expect("export")
        .into_inner();
    assert_eq!(exported, before, "T2: exported under the name foretold");
    assert_eq!(
        two.address_of(volume(1)),
        before,
        "T2: the same at every target of a kind"
    );
    let other = one.address_of(volume(2));
    assert_ne!(other.target_name, before.target_name, "T2: one target per volume");
    assert_ne!(other.serial, before.serial, "T2: one serial per volume");
    assert_eq!(
        before.target_name,
        before.target_name.to_lowercase(),
        "T2: names are lower case"
    );
    InitiatorName::parse(&before.target_name).expect("T2: the target's name is an iSCSI name");
    block_on(one.unexport(volume(1))).expect("unexport");
    assert_eq!(one.address_of(volume(1)), before, "T2: the same after unexport");
    block_on(one.shutdown());
    block_on(two.shutdown());
}

fn repeated_calls_are_unchanged(fixture: &mut dyn TargetFixture) {
    let target = fixture.fresh();
    let device = MemoryDevice::of_size(1 << 20);
    let first = grant("a", Access::ReadWrite, "secret-of-a-1");
    let second = grant("b", Access::ReadOnly, "secret-of-b-1");
    let both = [first.clone(), second.clone()];
    let export = |grants: &[Grant]| block_on(target.export(spec(1, &device, grants)));
    assert!(changed(export(&both), "export"), "T3: export is Changed");
    assert!(
        !changed(export(&both), "export again"),
        "T3: export again is Unchanged"
    );
    let reordered = [second.clone(), first.clone()];
    assert!(
        !changed(export(&reordered), "export, other order"),
        "T3: the order of grants means nothing"
    );
    let again = |one: &Grant| block_on(target.grant(volume(1), one.clone()));
    assert!(
        !changed(again(&first), "grant again"),
        "T3: the same grant is Unchanged"
    );
    let access = grant("a", Access::ReadOnly, "secret-of-a-1");
    assert!(
        changed(again(&access), "other access"),
        "T3: other access is Changed"
    );
    let secret = grant("a", Access::ReadOnly, "secret-of-a-2");
    assert!(
        changed(again(&secret), "other secret"),
        "T3: another secret is Changed"
    );
    let mutual = Grant {
        target_chap: Some(ChapCredentials {
            username: "target".to_owned(),
            secret: "secret-of-target".to_owned().into(),
        }),
        ..secret.clone()
    };
    assert!(
        changed(again(&mutual), "credentials of the target"),
        "T3: credentials of the target are Changed"
    );
    assert!(
        !changed(again(&mutual), "credentials of the target again"),
        "T3: and then Unchanged"
    );
    assert!(
        changed(again(&secret), "no credentials of the target"),
        "T3: none are Changed again"
    );
    assert!(
        !changed(again(&secret), "other secret again"),
        "T3: and then Unchanged"
    );
    assert!(
        changed(export(&both), "export with the old grants"),
        "T3: export makes the grants equal to these"
    );
    assert!(!changed(again(&first), "grant as exported"), "T3: as exported");
    let revoke = |host: &str| block_on(target.revoke(volume(1), &initiator(host)));
    assert!(changed(revoke("a"), "revoke"), "T3: revoke is Changed");
    assert!(
        !changed(revoke("a"), "revoke again"),
        "T3: revoke again is Unchanged"
    );
    assert!(
        !changed(again(&second), "the other grant"),
        "T3: revoke leaves the others"
    );
    assert!(
        !changed(revoke("c"), "revoke of the unknown"),
        "T3: revoke of the unknown"
    );
    let unexport = || block_on(target.unexport(volume(1)));
    assert!(changed(unexport(), "unexport"), "T3: unexport is Changed");
    assert!(
        !changed(unexport(), "unexport again"),
        "T3: unexport again is Unchanged"
    );
    assert!(
        !changed(revoke("b"), "revoke after unexport"),
        "T3: revoke of what is not exported is Unchanged"
    );
    block_on(target.shutdown());
}

fn limits_are_replaced_as_a_whole(fixture: &mut dyn TargetFixture) {
    let target = fixture.fresh();
    let device = MemoryDevice::of_size(1 << 20);
    let rate = |per_second| Rate {
        per_second: std::num::NonZeroU64::new(per_second).expect("not zero"),
        burst: 0,
    };
    let slow = IoLimits {
        total: RateLimits {
            commands: Some(rate(100)),
            bytes: None,
        },
        ..IoLimits::NONE
    };
    let slow_writes = IoLimits {
        write: RateLimits {
            commands: None,
            bytes: Some(rate(1 << 20)),
        },
        ..IoLimits::NONE
    };
    let export = |limits| {
        block_on(target.export(ExportSpec {
            limits,
            ..spec(1, &device, &[])
        }))
    };
    let set = |limits| block_on(target.set_limits(volume(1), limits));
    assert!(changed(export(slow), "export with limits"), "T8: export");
    assert!(!changed(export(slow), "export again"), "T8: the same limits");
    assert!(!changed(set(slow), "set as exported"), "T8: as exported");
    assert!(changed(set(slow_writes), "other limits"), "T8: other limits");
    assert!(!changed(set(slow_writes), "again"), "T8: and then Unchanged");
    assert!(
        changed(export(slow), "export with the old limits"),
        "T8: export makes the limits equal to these"
    );
    assert!(changed(set(IoLimits::NONE), "no limits"), "T8: no limits");
    assert!(!changed(export(IoLimits::NONE), "export"), "T8: no limits, again");
    block_on(target.unexport(volume(1))).expect("unexport");
    assert!(changed(export(slow), "export anew"), "T8: a new export");
    block_on(target.shutdown());
}

fn what_is_not_exported_is_not_found(fixture: &mut dyn TargetFixture) {
    let target = fixture.fresh();
    let one = grant("a", Access::ReadWrite, "secret-of-a-1");
    let error = block_on(target.grant(volume(9), one)).expect_err("grant: not exported");
    assert_eq!(error.kind(), ErrorKind::NotFound, "grant: {error}");
    let error = block_on(target.size_changed(volume(9))).expect_err("size_changed: not exported");
    assert_eq!(error.kind(), ErrorKind::NotFound, "size_changed: {error}");
    let error = block_on(target.set_limits(volume(9), IoLimits::NONE)).expect_err("set_limits: not exported");
    assert_eq!(error.kind(), ErrorKind::NotFound, "set_limits: {error}");
    assert!(
        block_on(target.sessions(None)).expect("sessions").is_empty(),
        "T1: a fresh target has no sessions"
    );
    let device = MemoryDevice::of_size(1 << 20);
    block_on(target.export(spec(1, &device, &[]))).expect("export");
    device.extend(2 << 20);
    block_on(target.size_changed(volume(1))).expect("size_changed: exported");
    assert!(
        block_on(target.sessions(Some(volume(1))))
            .expect("sessions")
            .is_empty(),
        "T1: an export without grants has no sessions"
    );
    block_on(target.shutdown());
}

/// T5. Only this suite's handle is left.
fn assert_dropped(label: &str, device: &Arc<MemoryDevice>) {
    assert_eq!(Arc::strong_count(device), 1, "{label}");
}

fn unexport_drops_the_device(fixture: &mut dyn TargetFixture) {
    let target = fixture.fresh();
    let device = MemoryDevice::of_size(1 << 20);
    for _ in 0..3 {
        block_on(target.export(spec(1, &device, &[]))).expect("export");
        block_on(target.unexport(volume(1))).expect("unexport");
        assert_dropped("T5: the device is dropped when unexport returns", &device);
    }
    block_on(target.shutdown());
}

fn exporting_again_keeps_the_device(fixture: &mut dyn TargetFixture) {
    let target = fixture.fresh();
    let (first, second) = (MemoryDevice::of_size(1 << 20), MemoryDevice::of_size(1 << 20));
    block_on(target.export(spec(1, &first, &[]))).expect("export");
    block_on(target.export(spec(1, &second, &[]))).expect("export again");
    assert_dropped("export: the second device is not kept", &second);
    assert!(Arc::strong_count(&first) > 1, "export: the first device is kept");
    block_on(target.unexport(volume(1))).expect("unexport");
    assert_dropped("T5: the first device is dropped", &first);
    block_on(target.shutdown());
}

fn shutdown_drops_every_device(fixture: &mut dyn TargetFixture) {
    let target = fixture.fresh();
    let devices: Vec<_> = (0..4).map(|_| MemoryDevice::of_size(1 << 20)).collect();
    for (number, device) in devices.iter().enumerate() {
        block_on(target.export(spec(number as u128, device, &[]))).expect("export");
    }
    block_on(target.shutdown());
    drop(target);
    eventually("shutdown: every device is dropped", || {
        devices.iter().all(|device| Arc::strong_count(device) == 1)
    });
}
