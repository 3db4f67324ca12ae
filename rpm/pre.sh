set -e

#include refuse-newer.sh

#include socket.sh

#include configuration.sh

refuse_newer
remember_socket
# Up to 0.1.0 the configuration belonged to the package, and rpm removes it with that package. %posttrans restores it.
if [ "$1" -gt 1 ] && [ -f "$configuration" ]; then
  ln -f "$configuration" "$configuration.before"
fi
