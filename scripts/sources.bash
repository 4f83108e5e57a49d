# shellcheck shell=bash
# Sourced by scripts/setup and tests/vm/fetch: where apt may get another suite of Debian from. No
# registry is named here: the mirror is the one this machine is configured for.

debian_codename() {
	# shellcheck source=/dev/null
	(. /etc/os-release && echo "${VERSION_CODENAME-}")
}

# index_targets: RELEASE URI FILE:NUMBER of each configured package index of component main.
# apt names only those whose lists are there, and images come without any.
index_targets() {
	apt-get indextargets 'Created-By: Packages' 'Component: main' \
		--format "\$(RELEASE) \$(REPO_URI) \$(SOURCESENTRY)"
}

# source_line SUITE: the apt source line of SUITE, which is the configured
# archive's with another suite name. Nothing is printed when there is none.
source_line() {
	local suite=$1 codename targets uri entry keyring
	codename=$(debian_codename)
	[[ $suite == *-security ]] && codename+=-security
	targets=$(index_targets)
	if ! grep -q "^$codename " <<<"$targets"; then
		apt-get update -q >&2 || true
		targets=$(index_targets)
	fi
	# A third party may use the same names: prefer a path that says Debian.
	read -r uri entry < <(
		awk -v release="$codename" '
			$1 == release { print ($2 ~ /\/debian(-security)?\/?$/ ? 0 : 1), $2, $3 }' <<<"$targets" |
			sort -s -n -k1,1 | head -n 1 | cut -d' ' -f2-
	) || return 0
	# Sourcesentry is FILE:NUMBER.
	keyring=$(sed -nE 's/.*[Ss]igned-[Bb]y[:=] *(\/[^] ]+).*/\1/p' "${entry%:*}" | head -n 1)
	keyring=${keyring:-/usr/share/keyrings/debian-archive-keyring.gpg}
	# Only the package index is wanted: no translations, no desktop metadata.
	echo "deb [arch=amd64 target=Packages signed-by=$keyring] $uri $suite main"
}
