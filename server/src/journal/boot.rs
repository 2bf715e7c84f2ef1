//! Which run of the machine this is: a journal of another one tells of processes that are gone.

use super::format::BootId;

impl BootId {
    /// This run's; `None` where the system doesn't say. Then nothing can be restored.
    pub fn current() -> Option<Self> {
        parse(&read()?)
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn read() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

#[cfg(target_vendor = "apple")]
fn read() -> Option<String> {
    let mut text = [0u8; 64];
    let mut length = text.len();
    // SAFETY: it writes at most `length` bytes, and says how many.
    let failed = unsafe {
        libc::sysctlbyname(
            c"kern.bootsessionuuid".as_ptr(),
            text.as_mut_ptr().cast(),
            &raw mut length,
            std::ptr::null_mut(),
            0,
        )
    };
    let text = text.get(..length).filter(|_| failed == 0)?;
    Some(std::str::from_utf8(text).ok()?.trim_end_matches('\0').to_owned())
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn read() -> Option<String> {
    None
}

/// A UUID as text.
fn parse(text: &str) -> Option<BootId> {
    let digits: String = text.trim().chars().filter(|&c| c != '-').collect();
    let id = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
    Some(BootId(id.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_told_by_its_uuid() {
        let id = parse("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(id.0[..3], [0x00, 0x11, 0x22]);
        assert_eq!(parse("0011"), None);
        assert_eq!(parse("no uuid at all, though long enough"), None);
        if cfg!(target_os = "linux") {
            assert_eq!(BootId::current(), BootId::current());
            assert!(BootId::current().is_some());
        }
    }
}
