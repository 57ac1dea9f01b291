//! READ DEFECT DATA: a volume's blocks have no defects of their own (SBC-3 5.16, 5.17).

/// Answers with empty lists. `lists` holds REQ_PLIST, REQ_GLIST and the format, as they were asked for: what is
/// returned is what was asked for, with nothing in it.
pub fn none(long: bool, lists: u8) -> Vec<u8> {
    let mut data = vec![0; if long { 8 } else { 4 }];
    data[1] = lists;
    data
}
