//! What a lock is called in every profile of it: no address, nothing of one boot or one build.

use crate::model::{Lock, LockPlace, Profile, Site, StackRef};
use crate::symbolize::callsite;

/// Of a lock that has been named and classified.
pub fn of_user_lock(lock: &Lock, profile: &Profile) -> String {
    let plus = |offset: u64| if offset == 0 { String::new() } else { format!("+{offset:#x}") };
    match &lock.place {
        Some(LockPlace::Global { module, symbol, offset }) => {
            format!("u:sym:{module}`{}{}", normalized(symbol), plus(*offset))
        }
        Some(LockPlace::Module { module, vaddr }) => format!("u:sym:{module}+{vaddr:#x}"),
        Some(LockPlace::Shared { path, offset, .. }) => {
            format!("u:shared:{}{}", path.trim_end_matches(" (deleted)"), plus(*offset))
        }
        Some(LockPlace::ThreadLocal) => format!("u:tls:{}", of_site(lock, profile)),
        Some(LockPlace::Stack | LockPlace::Heap) | None => format!("u:site:futex:{}", of_site(lock, profile)),
    }
}

/// Eight digits for where it is waited for most often: the three innermost functions outside the runtime.
fn of_site(lock: &Lock, profile: &Profile) -> String {
    let functions = |stack: StackRef| -> Vec<String> {
        let StackRef::Stack(index) = stack else { return vec![] };
        let Some(stack) = profile.stacks.get(index as usize) else { return vec![] };
        let takers = callsite::user_functions(stack, &profile.frames, 3);
        takers.into_iter().map(|name| normalized(&name)).collect()
    };
    let mut sites: Vec<(u64, Vec<String>)> = Vec::new();
    let mut add = |waits: u64, names: Vec<String>| match sites.iter_mut().find(|(_, known)| *known == names) {
        Some((sum, _)) => *sum += waits,
        None => sites.push((waits, names)),
    };
    let waits = |site: &Site| site.wait.contended + site.wait.aborted;
    lock.sites.iter().for_each(|site| add(waits(site), functions(site.user_stack)));
    lock.in_flight.iter().for_each(|wait| add(1, functions(wait.user_stack)));
    // Equal counts: the first in order.
    let site = sites.into_iter().max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(&a.1)));
    let names = site.map(|(_, names)| names).unwrap_or_default();
    let mut text = lock.type_name().to_string();
    names.iter().for_each(|name| {
        text.push('\n');
        text.push_str(name);
    });
    format!("{:08x}", fnv1a(text.as_bytes()))
}

/// 32 bits, the same on every machine and in every version.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// A symbol without what the compiler adds to it, and without offsets into code.
pub fn normalized(name: &str) -> String {
    const SUFFIXES: [&str; 6] = [".llvm.", ".cold", ".part.", ".constprop.", ".isra.", ".lto_priv."];
    let end = SUFFIXES.iter().filter_map(|suffix| name.find(suffix)).min().unwrap_or(name.len());
    let name = &name[..end];
    let name = match name.rsplit_once("+0x") {
        Some((before, digits)) if !before.is_empty() && is_hex(digits) => before,
        _ => name,
    };
    match name.rsplit_once("::h") {
        Some((before, hash)) if hash.len() == 16 && is_hex(hash) => before.to_string(),
        _ => name.to_string(),
    }
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `timer_bases[1].lock` → `timer_bases[].lock`
pub fn without_indexes(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    let mut inside = false;
    for c in name.chars() {
        inside &= c != ']';
        if !inside {
            text.push(c);
        }
        inside |= c == '[';
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_build_to_build_is_no_part_of_a_name() {
        for (name, normal) in [
            ("bank::transfer::h0123456789abcdef", "bank::transfer"),
            ("bank::h::transfer", "bank::h::transfer"),
            ("work.constprop.0.isra.3", "work"),
            ("work.llvm.1234567", "work"),
            ("libfoo.so+0x1f20", "libfoo.so"),
            ("operator+", "operator+"),
            ("plain", "plain"),
        ] {
            assert_eq!(normalized(name), normal);
        }
        assert_eq!(without_indexes("timer_bases[1].lock"), "timer_bases[].lock");
        assert_eq!(without_indexes("a[1].b[22]"), "a[].b[]");
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0x811c_9dc5);
        assert_eq!(fnv1a(b"foobar"), 0xbf9c_f968);
    }
}
