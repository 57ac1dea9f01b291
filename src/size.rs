//! Sizes as people write and read them: `2GiB` on the way in, `2.0 GiB` on the way out; bytes in between.
//!
//! Decimal units are refused on purpose. `GB` means 10^9 to some and 2^30 to others, and a volume that is 7 %
//! smaller than its owner believes is found out at the worst moment; the message shows both readings.

/// The units in use, with their shift.
const UNITS: [(&str, u32); 6] = [
    ("B", 0),
    ("KiB", 10),
    ("MiB", 20),
    ("GiB", 30),
    ("TiB", 40),
    ("PiB", 50),
];

/// Parses a size: plain bytes, or a number with one of `B KiB MiB GiB TiB PiB` (any case). A fraction is fine
/// when it comes to whole bytes (`1.5GiB`).
///
/// # Errors
/// Says what is wrong and how to write the size instead.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'))
        .unwrap_or(text.len());
    let (number, unit) = (text[..split].replace('_', ""), text[split..].trim());
    if number.is_empty() {
        return Err(format!("{text:?} is not a size; {HOW}"));
    }
    let (integer, fraction) = number.split_once('.').unwrap_or((&number, ""));
    let digits = format!("{integer}{fraction}");
    let Ok(value) = digits.parse::<u128>() else {
        return Err(format!("{text:?} is not a size; {HOW}"));
    };
    let shift = unit_shift(text, &number, unit)?;
    let scale = 10u128
        .checked_pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX))
        .ok_or_else(|| format!("{text:?} has too many digits; {HOW}"))?;
    let scaled = value.checked_mul(1 << shift).ok_or_else(|| too_large(text))?;
    if scaled % scale != 0 {
        return Err(format!("{text:?} is not a whole number of bytes; {HOW}"));
    }
    u64::try_from(scaled / scale).map_err(|_| too_large(text))
}

/// How to write a size, for the end of error messages.
const HOW: &str = "write 2GiB, 512MiB or a plain number of bytes";

fn too_large(text: &str) -> String {
    format!("{text:?} is more than 16 EiB, the largest size there is")
}

/// Finds a unit's shift, or explains the decimal and one-letter ones.
fn unit_shift(text: &str, number: &str, unit: &str) -> Result<u32, String> {
    if unit.is_empty() {
        return Ok(0);
    }
    if let Some((_, shift)) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
        return Ok(*shift);
    }
    let mut letters = unit.chars();
    let letter = letters.next().unwrap_or(' ').to_ascii_uppercase();
    let binary = UNITS
        .iter()
        .enumerate()
        .skip(1)
        .find(|(_, (name, _))| name.starts_with(letter));
    let is_ambiguous = matches!(letters.as_str(), "" | "B" | "b");
    match binary {
        Some((power, (name, _))) if is_ambiguous => Err(format!(
            "{text:?} can be read in two ways: {number}{name} counts in steps of 1024, {number} x 10^{} bytes in \
             steps of 1000; write {number}{name} for the first or the number of bytes for the second",
            power * 3
        )),
        _ => Err(format!("{unit:?} is not a unit of size; {HOW}")),
    }
}

/// Shows bytes in the largest unit that keeps the number at or above one, with one digit after the point unless
/// it is whole: `2 GiB`, `1.5 GiB`, `512 B`.
pub fn show_size(bytes: u64) -> String {
    let (unit, shift) = UNITS
        .iter()
        .rev()
        .find(|(_, shift)| bytes >> shift > 0)
        .unwrap_or(&UNITS[0]);
    let whole = bytes >> shift;
    let rest = bytes - (whole << shift);
    if rest == 0 {
        return format!("{whole} {unit}");
    }
    // Rounded down, so that a pool with less than 1 TiB free never shows a full 1.0 TiB.
    let tenth = (u128::from(rest) * 10) >> shift;
    format!("{whole}.{tenth} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_binary_units_and_plain_bytes_are_read() {
        let good = [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1_048_576", 1 << 20),
            ("512MiB", 512 << 20),
            ("2GiB", 2 << 30),
            ("2 gib", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("16383PiB", 16383 << 50),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_decimal_unit_is_refused_with_both_readings() {
        assert_eq!(
            parse_size("2GB").unwrap_err(),
            "\"2GB\" can be read in two ways: 2GiB counts in steps of 1024, 2 x 10^9 bytes in steps of 1000; \
             write 2GiB for the first or the number of bytes for the second"
        );
        for text in ["2G", "2g", "1.5TB", "7kb", "7K"] {
            assert!(parse_size(text).unwrap_err().contains("two ways"), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in [
            "",
            "GiB",
            "two",
            "-1GiB",
            "2Gibibytes",
            "2 XiB",
            "1.2.3",
            "0.3B",
            "2GiBs",
            "2é",
        ] {
            let message = parse_size(text).unwrap_err();
            assert!(
                message.contains("write 2GiB, 512MiB or a plain number of bytes"),
                "{text}: {message}"
            );
        }
        for text in [
            "16384PiB",
            "18446744073709551616",
            "99999999999999999999999999999999PiB",
        ] {
            assert!(parse_size(text).unwrap_err().contains("16 EiB"), "{text}");
        }
    }

    #[test]
    fn shown_sizes_are_short_and_never_rounded_up() {
        let shown = [
            (0, "0 B"),
            (512, "512 B"),
            (1536, "1.5 KiB"),
            (2 << 30, "2 GiB"),
            ((1 << 40) - 1, "1023.9 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ];
        for (bytes, text) in shown {
            assert_eq!(show_size(bytes), text);
        }
    }
}
