# Takes a machine away whatever becomes of the test that booted it. It lives until its input ends, and the input ends with
# the test, however that ends. The input names processes of the machine, a line each.
# $1: the machine's root, beside which its other files lie. $2: the machine's name, also that of its control groups.
trap '' HUP INT TERM
pids=
while read -r pid; do pids="$pids $pid"; done

groups() { find /sys/fs/cgroup -depth -type d \( -path "*/$1" -o -path "*/$1/*" \) 2>/dev/null; }

tries=0
while [ $tries -lt 600 ]; do
	for pid in $pids; do kill -9 "$pid" 2>/dev/null; done
	groups "$2" | while read -r group; do
		while read -r pid; do kill -9 "$pid" 2>/dev/null; done <"$group/cgroup.procs"
		rmdir "$group" 2>/dev/null
	done
	if [ -z "$(groups "$2")" ]; then
		rm -rf --one-file-system "$1" "$1.notify" "$(dirname "$1")/.#$2.lck" "/run/systemd/nspawn/propagate/$2" \
			"/run/systemd/nspawn/unix-export/$2" 2>/dev/null
		[ -e "$1" ] || exit 0
	fi
	tries=$((tries + 1))
	sleep 0.1
done
exit 1
