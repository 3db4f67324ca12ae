#include configuration.sh

# Restores a configuration that rpm removed. An edited one is next to it under another name; an unedited one set
# nothing.
if [ ! -e "$configuration" ] && [ -e "$configuration.before" ]; then
  # shellcheck disable=SC3013 # bash and dash support it
  if [ "$configuration.rpmsave" -ef "$configuration.before" ]; then
    mv "$configuration.rpmsave" "$configuration"
  else
    first_configuration
  fi
fi
rm -f "$configuration.before"
