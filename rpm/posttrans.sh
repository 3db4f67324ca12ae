#include configuration.sh

# What rpm has taken away: an edited configuration is beside it under another name, and an unedited one said nothing.
if [ ! -e "$configuration" ] && [ -e "$configuration.before" ]; then
  # shellcheck disable=SC3013 # bash has it, and so has dash
  if [ "$configuration.rpmsave" -ef "$configuration.before" ]; then
    mv "$configuration.rpmsave" "$configuration"
  else
    first_configuration
  fi
fi
rm -f "$configuration.before"
